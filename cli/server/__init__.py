"""A ComfyUI elsewhere that runs a workflow."""
