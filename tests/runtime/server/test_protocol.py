"""What the frontend and API clients rely on: endpoints, messages and their order, errors at their nodes."""

import asyncio
import json
import struct
import threading

import pytest

from velatura.benchmarks._crowd import crowd
from velatura.runtime.registry import object_info

from .conftest import node, slow

BOOT = ("users", "settings", "extensions", "object_info", "system_stats", "features", "i18n", "workflow_templates")
BOOT += (
    "global_subgraphs",
    "experiment/models",
    "embeddings",
    "queue",
    "history",
    "jobs",
    "prompt",
    "node_replacements",
)


async def test_all_that_a_browser_asks_for_at_its_start_is_there(serving, small):
    """A missing one is an error dialog. Programs leave the prefix out."""
    async with serving() as browser:
        for path in BOOT:
            assert await browser.get(f"/api/{path}") == await browser.get(f"/{path}") or path == "system_stats"
        assert await browser.get("/api/users") == {"storage": "server", "migrated": True}
        assert await browser.get("/api/object_info") == json.loads(json.dumps(object_info(small.nodes)))
        assert list(await browser.get("/api/object_info/Add")) == ["Add"]
        assert await browser.get("/api/object_info/Nothing") == {}
        assert await browser.get("/templates/index.json") == []
        for folder in ("workflows", "subgraphs"):
            assert await browser.get(f"/api/userdata?dir={folder}&recurse=true&full_info=true") == []
        settings = await browser.get("/api/settings")
        assert settings["Comfy.Notification.ShowVersionUpdates"] is False, "the page would ask a host on the internet"


async def test_the_examples_are_listed_with_their_pictures(serving):
    async with serving() as browser:
        names = (await browser.get("/api/workflow_templates"))["velatura"]
        assert names[0] == "text_to_image"
        for name in names:
            assert "nodes" in await browser.get(f"/api/workflow_templates/velatura/{name}.json")
            async with browser.client.get(f"/api/workflow_templates/velatura/{name}.jpg") as answer:
                assert answer.status == 200 and answer.content_type == "image/jpeg"


async def test_help_pages_are_served_where_comfyui_serves_them(serving):
    async with serving() as browser, browser.client.get("/extensions/velatura/docs/VelaturaDemoModel.md") as answer:
        assert answer.status == 200 and "sprites" in await answer.text()


async def test_the_packs_scripts_load_as_in_comfyui(serving, tmp_path, monkeypatch):
    """One entry file for both hosts: listed are scripts, not modules; `../../scripts/app.js` is the frontend's."""
    from velatura.runtime.server import frontend

    (tmp_path / "web" / "widgets").mkdir(parents=True)
    for name in ("velatura.js", "widgets/slider.mjs"):
        (tmp_path / "web" / name).write_text("export {}")
    monkeypatch.setattr(frontend, "PACK", tmp_path)
    async with serving() as browser:
        assert await browser.get("/api/extensions") == ["/extensions/velatura/velatura.js"]
        for name in ("velatura.js", "widgets/slider.mjs"):
            async with browser.client.get(f"/extensions/velatura/{name}") as answer:
                assert answer.content_type == "text/javascript" and answer.headers["Cache-Control"] == "no-cache"
        async with browser.client.get("/scripts/app.js") as answer:
            assert answer.status == (200 if frontend.static_folder() else 404)


async def test_a_run_tells_its_story_in_order(serving):
    """Progress bars and results hang on these messages; a client asks for the history once it hears the end."""
    async with serving() as browser:
        socket = await browser.listen()
        answer = await browser.queue(slow(2))
        assert answer["node_errors"] == {} and answer["number"] == 0
        heard = await browser.hear(socket)
        history = await browser.get(f"/api/history/{answer['prompt_id']}")
        await browser.hear(socket, until="status")
    told = [each for each in heard if each[0] != "status"]
    assert [name for name, _ in told] == [
        "feature_flags", "execution_start", "execution_cached", "progress_state", "executing",
        "progress_state", "progress", "progress_state", "progress",
        "progress_state", "executing", "executed", "execution_success", "executing",
    ]  # fmt: skip
    assert {data["prompt_id"] for _, data in told[1:]} == {answer["prompt_id"]}
    last = told[9][1]["nodes"]
    assert last["1"]["state"] == "finished" and last["2"]["state"] == "running"
    assert last["1"] | {"value": 2, "max": 2, "node_id": "1", "display_node_id": "1", "real_node_id": "1"} == last["1"]
    entry = history[answer["prompt_id"]]
    assert entry["outputs"] == {"2": {"text": ["2"]}}
    assert entry["status"]["status_str"] == "success" and entry["status"]["completed"]
    assert [name for name, _ in entry["status"]["messages"]] == [
        "execution_start", "execution_cached", "execution_success",
    ]  # fmt: skip


async def test_only_the_tab_that_asked_is_told_of_its_run_and_all_of_the_queue(serving):
    async with serving() as browser:
        mine, other = await browser.listen("me"), await browser.listen("other")
        await browser.queue(slow(1))
        await browser.hear(mine)
        await browser.queue(slow(2), client_id="other")
        heard = await browser.hear(other)
        names = [name for name, _ in heard]
        assert names.count("execution_success") == 1 and names.count("status") >= 2


async def test_what_ran_already_is_told_as_cached(serving):
    """Interactive editing lives on it."""
    async with serving() as browser:
        socket = await browser.listen()
        await browser.queue(slow(3))
        await browser.hear(socket)
        await browser.queue(slow(3))
        heard = dict(await browser.hear(socket))
        assert heard["execution_cached"]["nodes"] == ["1", "2"]
        assert heard["executed"]["output"] == {"text": ["3"]}
        await browser.post("/api/free", {"free_memory": True})
        await browser.queue(slow(3))
        assert dict(await browser.hear(socket))["execution_cached"]["nodes"] == []


async def test_previews_are_sent_in_the_form_that_the_client_knows(serving, small):
    import torch

    image = torch.full((3, 16, 16), 0.5)
    small.nodes["Slow"].execute = classmethod(lambda cls, steps, after=None: _with_preview(steps, image))
    async with serving() as browser:
        new, old = await browser.listen("new"), await browser.listen("old", flags={"supports_preview_metadata": False})
        for client, socket in (("new", new), ("old", old)):
            answer = await browser.queue(slow(1 if client == "new" else 2), client_id=client)
            (data,) = [each for each in await browser.hear(socket) if isinstance(each, bytes)]
            kind, length = struct.unpack(">II", data[:8])
            if client == "new":
                meta, picture = json.loads(data[8 : 8 + length]), data[8 + length :]
                assert kind == 4 and meta["node_id"] == "1" and meta["prompt_id"] == answer["prompt_id"]
                assert meta["image_type"] == "image/jpeg"
            else:
                picture = data[8:]
                assert (kind, length) == (1, 1)
            assert picture.startswith(b"\xff\xd8\xff")


async def test_who_did_not_ask_for_previews_gets_none(serving, small):
    """Programs take whatever is binary for a result; and people turn previews off."""
    import torch

    image = torch.zeros(3, 16, 16)
    small.nodes["Slow"].execute = classmethod(lambda cls, steps, after=None: _with_preview(steps, image))
    async with serving() as browser:
        silent = await browser.client.ws_connect("/ws?clientId=silent")
        await browser.queue(slow(1), client_id="silent")
        assert not any(isinstance(each, bytes) for each in await browser.hear(silent))
        socket = await browser.listen()
        await browser.queue(slow(2), extra_data={"preview_method": "none"})
        assert not any(isinstance(each, bytes) for each in await browser.hear(socket))


def _with_preview(steps, image):
    from velatura.hosts import running
    from velatura.hosts.schema import NodeOutput

    running.progress(1)(1, 1, image)
    return NodeOutput(steps)


async def test_all_that_is_wrong_is_said_at_its_node(serving):
    graph = {
        "1": node("Number", value=1000),
        "2": node("Add", a=["1", 0]),
        "3": node("Show", value=["2", 0]),
        "4": node("Show", value=["1", 0]),
    }
    async with serving() as browser:
        answer = await browser.queue(graph, status=400)
        assert answer["error"]["type"] == "prompt_outputs_failed_validation"
        errors = answer["node_errors"]
        assert errors["1"]["errors"][0]["type"] == "value_bigger_than_max"
        assert errors["1"]["class_type"] == "Number" and set(errors["1"]["dependent_outputs"]) == {"3", "4"}
        assert errors["2"]["errors"][0] | {"type": "required_input_missing", "details": "b"} == errors["2"]["errors"][0]
        assert errors["2"]["errors"][0]["extra_info"] == {"input_name": "b"}
        assert errors["2"]["dependent_outputs"] == ["3"]
        unknown = await browser.queue({"9": node("Nothing"), **slow()}, status=400)
        assert unknown["node_errors"]["9"]["errors"][0]["type"] == "missing_node_type"
        assert (await browser.queue({"1": node("Number")}, status=400))["error"]["type"] == "prompt_no_outputs"
        assert (await browser.post("/api/prompt", {}, 400))["error"]["type"] == "no_prompt"
        assert await browser.get("/api/jobs?status=pending") == await browser.get("/api/jobs?status=pending,failed")


async def test_a_failure_is_shown_on_its_node_and_the_queue_goes_on(serving, small):
    small.state.fail = True
    graph = {"1": node("Add", a=1, b=2), "2": node("Show", value=["1", 0])}
    async with serving() as browser:
        socket = await browser.listen()
        id_ = (await browser.queue(graph))["prompt_id"]
        told = dict(await browser.hear(socket))["execution_error"]
        assert told["node_id"] == "1" and told["node_type"] == "Add" and told["exception_type"] == "ValueError"
        assert told["exception_message"] == "the sum is too large"
        (job,) = (await browser.get("/api/jobs?status=failed"))["jobs"]
        assert job["id"] == id_ and job["execution_error"]["exception_message"] == "the sum is too large"
        small.state.fail = False
        await browser.queue(graph)
        assert "execution_success" in dict(await browser.hear(socket))


class Gate:
    """Holds the Slow node in its first step until it is opened."""

    def __init__(self, small):
        self.reached, self.open = threading.Event(), threading.Event()
        small.state.on_step = self._step

    def _step(self, step):
        self.reached.set()
        assert self.open.wait(60)

    async def wait(self):
        assert await asyncio.to_thread(self.reached.wait, 60)


async def test_the_server_answers_while_a_node_is_at_work(serving, small):
    """A blocked event loop is a page that hangs for as long as the sampling takes."""
    gate = Gate(small)
    async with serving() as browser:
        try:
            await browser.queue(slow(2))
            await gate.wait()
            assert (await browser.get("/api/users"))["storage"] == "server"
            assert len((await browser.get("/api/queue"))["queue_running"]) == 1
            (job,) = (await browser.get("/api/jobs?status=in_progress,pending"))["jobs"]
            assert job["status"] == "in_progress" and job["execution_end_time"] is None
            assert await browser.get("/api/prompt") == {"exec_info": {"queue_remaining": 1}}
        finally:
            gate.open.set()


@pytest.mark.parametrize("how", ["interrupt", "interrupt by id", "cancel", "cancel some"])
async def test_cancelling_stops_the_running_job_within_a_step(serving, small, how):
    gate = Gate(small)
    async with serving() as browser:
        socket = await browser.listen()
        try:
            id_ = (await browser.queue(slow(50)))["prompt_id"]
            await gate.wait()
            await browser.post("/api/interrupt", {"prompt_id": "another"})
            assert not browser.server.queue.running.cancel.is_set()
            if how == "interrupt":
                await browser.post("/api/interrupt", b"")
            elif how == "interrupt by id":
                await browser.post("/api/interrupt", {"prompt_id": id_})
            elif how == "cancel":
                await browser.post(f"/api/jobs/{id_}/cancel")
            else:
                assert await browser.post("/api/jobs/cancel", {"job_ids": [id_]}) == {"cancelled": [id_]}
        finally:
            gate.open.set()
        heard = await browser.hear(socket)
        assert [data["value"] for name, data in heard if name == "progress"] == [1]
        assert dict(heard)["execution_interrupted"]["node_id"] == "1"
        (job,) = (await browser.get("/api/jobs?status=cancelled"))["jobs"]
        assert job["id"] == id_


async def test_what_waits_can_be_dropped_and_what_is_urgent_goes_first(serving, small):
    gate = Gate(small)
    async with serving() as browser:
        try:
            first = (await browser.queue(slow(2)))["prompt_id"]
            await gate.wait()
            later = [(await browser.queue(slow(3 + i)))["prompt_id"] for i in range(4)]
            urgent = (await browser.queue(slow(9), front=True))["prompt_id"]
            waiting = [entry[1] for entry in (await browser.get("/api/queue"))["queue_pending"]]
            assert waiting == [urgent, *later]
            await browser.post("/api/queue", {"delete": [later[0]]})
            await browser.post(f"/api/jobs/{later[1]}/cancel")
            assert [job["id"] for job in (await browser.get("/api/jobs?status=pending"))["jobs"]] != []
            socket = await browser.listen()
        finally:
            gate.open.set()
        for _ in range(4):
            await browser.hear(socket)
        assert list(await browser.get("/api/history")) == [first, urgent, later[2], later[3]]
        await browser.post("/api/queue", {"clear": True})


async def test_a_reloaded_page_is_told_which_node_runs(serving, small):
    gate = Gate(small)
    async with serving() as browser:
        try:
            await browser.queue(slow(2))
            await gate.wait()
            socket = await browser.client.ws_connect("/ws?clientId=me")
            assert [(await socket.receive_json())["type"] for _ in range(2)] == ["status", "executing"]
        finally:
            gate.open.set()


async def test_part_of_a_graph_runs_for_the_sake_of_one_node(serving, small):
    graph = slow(2) | {"3": node("Show", value=["4", 0]), "4": node("Number", value=10**6)}
    async with serving() as browser:
        await browser.run(graph, partial_execution_targets=["2"])
        assert small.ran == ["1", "2"], "the other branch ran, or its fault was in the way"
        assert (await browser.queue(graph, 400, partial_execution_targets=["1"]))["error"][
            "type"
        ] == "prompt_no_outputs"


async def test_jobs_are_listed_a_page_at_a_time_as_the_frontend_checks_them(serving):
    async with serving() as browser:
        ids = [
            await browser.run(slow(i + 1), extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}}) for i in range(3)
        ]
        page = await browser.get("/api/jobs?status=completed,failed,cancelled&limit=2&offset=0")
        assert page["pagination"] == {"offset": 0, "limit": 2, "total": 3, "has_more": True}
        rest = await browser.get("/api/jobs?status=completed&limit=2&offset=2")
        assert {job["id"] for job in [*page["jobs"], *rest["jobs"]]} == set(ids)
        job = await browser.get(f"/api/jobs/{ids[0]}")
        assert job["workflow"]["extra_data"]["extra_pnginfo"] == {"workflow": {"id": "w"}} and job["workflow_id"] == "w"
        assert job["outputs"] == {"2": {"text": ["1"]}} and job["outputs_count"] == 0
        for name in ("create_time", "execution_start_time", "execution_end_time", "priority"):
            assert isinstance(job[name], (int, float))
        await browser.get("/api/jobs/nothing", status=404)
        assert len(await browser.get("/api/history?max_items=2")) == 2
        await browser.post("/api/history", {"delete": [ids[0]]})
        assert list(await browser.get("/api/history")) == ids[1:]
        await browser.post("/api/history", {"clear": True})
        assert await browser.get("/api/history") == {}


async def test_a_picture_that_was_made_is_found_by_the_names_that_are_told(serving, small):
    graph = {
        "1": node("Draw", seed=1, mode="wide", scale=1.0, flip=False, text=""),
        "2": node("Look", image=["1", 0]),
    }
    async with serving() as browser:
        id_ = await browser.run(graph)
        job = await browser.get(f"/api/jobs/{id_}")
        shown = job["preview_output"]
        assert shown["nodeId"] == "2" and shown["mediaType"] == "images" and job["outputs_count"] == 1
        query = {name: shown[name] for name in ("filename", "subfolder", "type")}
        async with browser.client.get("/api/view", params=query) as answer:
            assert answer.status == 200 and answer.content_type == "image/png"
            assert (await answer.read()).startswith(b"\x89PNG")
        for more, kind in (({"preview": "webp;75"}, "webp"), ({"preview": "jpeg"}, "jpeg"), ({"channel": "a"}, "png")):
            async with browser.client.get("/api/view", params=query | more) as answer:
                assert answer.status == 200 and answer.content_type == f"image/{kind}"


async def test_many_graphs_and_many_listeners_lose_nothing(serving, small):
    """Each listener hears the whole story of its own graphs and of the queue, and nobody else's."""
    graphs = [slow(3) | {"1": node("Slow", steps=3, after=k)} for k in range(100)]
    async with serving(queued=300, history=300) as browser:
        address = str(browser.client.make_url("/"))
        found = await crowd(address, graphs, clients=50, steps=3)
        assert (found.finished, found.lost) == (100, 0)
        finished = await browser.get("/api/history")
        assert len(finished) == 100 and all(each["status"]["completed"] for each in finished.values())
        # It would be seen.
        send, held = browser.server.hub.send, []
        browser.server.hub.send = lambda id_, told: (
            held.append(told) if told.name == "progress" and len(held) < 2 else send(id_, told)
        )
        assert (await crowd(address, graphs[:4], clients=2, steps=3)).lost == 2
