"""A procedural world of shapes: scenes, captions, exact masks, and a grader."""
