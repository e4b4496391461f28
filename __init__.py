"""Velatura: transparent layers, smooth latents, inversion, point drag and few-step sampling for ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point. Nothing of the pack is imported before the host asks for it."""
    from .nodes import VelaturaExtension

    return VelaturaExtension()
