"""ComfyUI's stock nodes, those that the pack's workflows use, on diffusers."""

from . import conditioning, image, latent, loaders, mask, sampling

NODES = [*loaders.NODES, *conditioning.NODES, *latent.NODES, *sampling.NODES, *image.NODES, *mask.NODES]
