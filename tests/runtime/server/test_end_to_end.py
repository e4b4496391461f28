"""An example, with the model that ships: progress, previews, and a picture that brings its graph back."""

import json
from io import BytesIO

import aiohttp
import pytest
from PIL import Image

from velatura.runtime import registry, workflow
from velatura.runtime.server.config import PACK

from ...conftest import SHIPPED
from .conftest import node


@pytest.mark.skipif(not (SHIPPED / "model_index.json").is_file(), reason="the demo model is not in this copy")
async def test_an_example_runs_as_the_browser_runs_it(serving, config):
    nodes = registry.all_nodes()
    path = PACK / "example_workflows" / "text_to_image.json"
    loaded = workflow.load(path, registry.object_info(nodes))
    (sampler,) = [id_ for id_, node in loaded.prompt.items() if node["class_type"] == "KSampler"]
    loaded.prompt[sampler]["inputs"]["steps"] = 3
    extra = {"extra_pnginfo": {"workflow": loaded.document}}
    async with serving(nodes) as browser:
        socket = await browser.listen()
        id_ = (await browser.queue(loaded.prompt, extra_data=extra))["prompt_id"]
        heard = await browser.hear(socket)
        steps = [each[1]["value"] for each in heard if each[0] == "progress" and each[1]["node"] == sampler]
        assert steps == [1, 2, 3]
        assert any(isinstance(each, bytes) for each in heard), "no preview"
        job = await browser.get(f"/api/jobs/{id_}")
        shown = job["preview_output"]
        assert job["outputs_count"] == 4 and shown["type"] == "output"
        query = {name: shown[name] for name in ("filename", "subfolder", "type")}
        async with browser.client.get("/api/view", params=query) as answer:
            data = await answer.read()
    saved = config.folders.output / shown["subfolder"] / shown["filename"]
    assert saved.read_bytes() == data
    with Image.open(saved) as picture:
        assert json.loads(picture.info["workflow"]) == loaded.document, (
            "dropped on the canvas, the graph is not restored"
        )
        assert json.loads(picture.info["prompt"])[sampler]["inputs"]["steps"] == 3
    assert workflow.load(saved, registry.object_info(nodes)).prompt == loaded.prompt


async def test_an_uploaded_picture_is_loaded_by_name_and_comes_back_alike(serving):
    graph = {"1": node("LoadImage", image="up (1)/a.png"), "2": node("PreviewImage", images=["1", 0])}
    async with serving(registry.all_nodes()) as browser:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", BytesIO(_PICTURE), filename="a.png")
        form.add_field("subfolder", "up (1)")
        kept = await browser.post("/api/upload/image", form)
        assert f"{kept['subfolder']}/{kept['name']}" == graph["1"]["inputs"]["image"]
        job = await browser.get(f"/api/jobs/{await browser.run(graph)}")
        shown = {name: job["preview_output"][name] for name in ("filename", "subfolder", "type")}
        assert shown["type"] == "temp"
        async with browser.client.get("/api/view", params=shown) as answer:
            made = Image.open(BytesIO(await answer.read()))
        assert made.tobytes() == Image.open(BytesIO(_PICTURE)).tobytes()


def _picture() -> bytes:
    stream = BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((16, 12)).save(stream, "PNG")
    return stream.getvalue()


_PICTURE = _picture()
