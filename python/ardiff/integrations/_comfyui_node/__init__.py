"""The node that `ardiff comfyui FOLDER` copies to ComfyUI: it adds ardiff's samplers."""

# Absolute, since ComfyUI loads the copy by its path.
from ardiff.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register

register()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
