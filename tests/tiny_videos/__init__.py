"""Tiny random video pipelines: real diffusers classes made from configs, nothing downloaded."""
