"""Ground truth for interpretability: methods plug in as functions and are scored against the world.

`segmentation` scores saliency maps against exact masks, `causal` and `weakening` score
interventions by what a grader sees in the images, `polysemy` counts misread prompts. Everything
that is scored is a function of plain inputs, so that a method needs nothing but a signature.
"""
