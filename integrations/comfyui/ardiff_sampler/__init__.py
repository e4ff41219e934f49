"""Copy this folder to ComfyUI/custom_nodes: it adds ardiff's samplers (docs/integrations)."""

from ardiff.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register

register()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
