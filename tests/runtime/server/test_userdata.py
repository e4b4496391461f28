"""What a user keeps on the server is there tomorrow, whatever happened in between."""

import json

from .conftest import slow


async def test_saved_workflows_live_through_a_restart(serving, config):
    """As the frontend saves: an encoded slash in the name, no overwriting without a word."""
    path = "/api/userdata/workflows%2Fmy%20flow.json?overwrite=false&full_info=true"
    async with serving() as browser:
        saved = await browser.post(path, b'{"nodes": []}')
        assert saved["path"] == "workflows/my flow.json" and saved["size"] == 13
        assert isinstance(saved["modified"], int) and saved["modified"] > 10**12
        async with browser.client.post(path, data=b"{}") as answer:
            assert answer.status == 409
    async with serving() as browser:
        assert await browser.get("/api/userdata/workflows%2Fmy%20flow.json") == {"nodes": []}
        (entry,) = await browser.get("/api/userdata?dir=workflows&recurse=true&split=false&full_info=true")
        assert entry["path"] == "my flow.json"
        assert await browser.post("/api/userdata/workflows%2Fmy%20flow.json", b"{}") == "workflows/my flow.json"


async def test_folders_are_listed_in_every_form(serving):
    async with serving() as browser:
        for name in ("b.json", "deep%2Fa.json", ".index.json"):
            await browser.post(f"/api/userdata/workflows%2F{name}", b"{}")
        assert await browser.get("/api/userdata?dir=workflows") == ["b.json"]
        assert await browser.get("/api/userdata?dir=workflows&recurse=true") == ["b.json", "deep/a.json"]
        parts = await browser.get("/api/userdata?dir=workflows&recurse=true&split=true")
        assert parts == [["b.json", "b.json"], ["deep/a.json", "deep", "a.json"]]
        assert await browser.get("/api/userdata/workflows%2F.index.json") == {}, "bookmarks are kept in a hidden file"
        tree = await browser.get("/api/v2/userdata?path=workflows")
        assert tree[0] == {"name": "deep", "path": "workflows/deep", "type": "directory"}
        async with browser.client.get("/api/userdata?dir=nothing") as answer:
            assert answer.status == 404


async def test_files_are_renamed_and_dropped(serving):
    async with serving() as browser:
        for name in ("a", "b"):
            await browser.post(f"/api/userdata/workflows%2F{name}.json", json.dumps(name).encode())
        move = "/api/userdata/workflows%2Fa.json/move/workflows%2Fb.json"
        async with browser.client.post(f"{move}?overwrite=false") as answer:
            assert answer.status == 409
        assert (await browser.post(f"{move}?overwrite=true&full_info=true"))["path"] == "workflows/b.json"
        assert await browser.get("/api/userdata/workflows%2Fb.json") == "a"
        async with browser.client.delete("/api/userdata/workflows%2Fb.json") as answer:
            assert answer.status == 204
        async with browser.client.get("/api/userdata/workflows%2Fb.json") as answer:
            assert answer.status == 404


async def test_settings_are_kept_beside_each_other(serving, config):
    async with serving() as browser:
        await browser.post("/api/settings", {"A": 1, "Comfy.TutorialCompleted": True})
        await browser.post("/api/settings/B", [1, 2])
        await browser.post("/api/settings/Comfy.Notification.ShowVersionUpdates", True)
    async with serving() as browser:
        assert await browser.get("/api/settings") == {
            "A": 1,
            "B": [1, 2],
            "Comfy.Notification.ShowVersionUpdates": True,
        }
        assert await browser.get("/api/settings/B") == [1, 2]
        assert await browser.get("/api/settings/C") is None
    config.settings.write_text("{ damaged")
    async with serving() as browser:
        assert await browser.get("/api/settings/A") is None
        await browser.post("/api/settings/A", 2)
        assert await browser.get("/api/settings/A") == 2
    assert config.settings.with_suffix(".damaged.json").read_text() == "{ damaged", "it could have been mended"


async def test_the_history_lives_through_a_restart_and_a_damaged_file(serving, config):
    async with serving() as browser:
        ids = [await browser.run(slow(i + 1)) for i in range(3)]
        before = await browser.get("/api/history")
    (config.history / f"{ids[1]}.json").write_text('{"id": "half a')
    (config.history / "no job.json").write_text("{}")
    async with serving() as browser:
        after = await browser.get("/api/history")
        assert list(after) == [ids[0], ids[2]]
        for id_ in after:
            assert after[id_]["outputs"] == before[id_]["outputs"] and after[id_]["status"] == before[id_]["status"]
        assert (await browser.get(f"/api/jobs/{ids[2]}"))["status"] == "completed"


async def test_the_history_does_not_grow_without_end(serving, config):
    async with serving(history=3) as browser:
        ids = [await browser.run(slow(i + 1)) for i in range(5)]
        assert list(await browser.get("/api/history")) == ids[2:]
    assert {each.stem for each in config.history.iterdir()} == set(ids[2:])


async def test_half_written_files_of_a_killed_process_are_swept_and_fresh_ones_are_not(serving, config):
    import os

    folder = config.documents / "workflows"
    folder.mkdir(parents=True)
    old, fresh, other = (
        folder / name for name in (f".a.json-{'0' * 32}.part", f".b.json-{'1' * 32}.part", ".mine.part")
    )
    for each in (old, fresh, other):
        each.write_text("half")
    for each in (old, other):
        os.utime(each, (0, 0))
    async with serving():
        assert not old.exists() and fresh.exists() and other.exists()
