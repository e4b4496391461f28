"""The command line on the real nodes: what it prints, what it leaves on disk, and how it refuses bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from velatura.nodes import load
from velatura.runtime.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "text_to_image.json"


def entry(class_, **inputs):
    return {"class_type": class_, "inputs": inputs}


def picture(**sampler):
    """A graph from a checkpoint to a saved picture."""
    settings = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": entry("CheckpointLoaderSimple", ckpt_name="small"),
        "2": {**entry("CLIPTextEncode", text="a red ball", clip=["1", 1]), "_meta": {"title": "Positive"}},
        "3": {**entry("CLIPTextEncode", text="", clip=["1", 1]), "_meta": {"title": "Negative"}},
        "4": entry("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": entry("KSampler", **(settings | wires | sampler)),
        "6": entry("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": entry("SaveImage", images=["6", 0], filename_prefix="pic"),
    }


@pytest.fixture
def place(tmp_path, monkeypatch, random_folder):
    """An empty folder to work in, where models/checkpoints/small is the demo architecture."""
    shutil.copytree(random_folder, tmp_path / "models" / "checkpoints" / "small", copy_function=os.link)
    monkeypatch.delenv("VELATURA_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place, document, name="flow.json"):
    (place / name).write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return name


def test_the_shipped_example_runs_and_its_picture_carries_it(place, sprites_folder, monkeypatch, capsys):
    """The one command of the README. What `--set` changed is changed in the picture's workflow too."""
    if sprites_folder.name != "sprites":
        (place / "sprites").symlink_to(sprites_folder)
        monkeypatch.setattr(load, "DEMO_MODELS", place)
    changes = ["KSampler.steps=2", "EmptyLatentImage.batch_size=1", "KSampler.seed=8"]
    settings = [word for change in changes for word in ("--set", change)]
    assert main(["run", str(EXAMPLE), "--out", "here", *settings]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(Path("here", "velatura", "text_to_image_00001_.png"))]
    assert "KSampler" in printed.err, "no progress was shown"
    with Image.open(printed.out.strip()) as found:
        assert found.size == (128, 128)
        saved = json.loads(found.info["workflow"])
    sampler = next(node for node in saved["nodes"] if node["type"] == "KSampler")
    assert sampler["widgets_values"][:3] == [8, "fixed", 2]


def test_a_saved_picture_makes_the_same_picture_again(place, capsys):
    """And `--json` prints one object and nothing else."""
    assert main(["run", write(place, picture()), "--out", "one", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["files"] == [str(Path("one", "pic_00001_.png"))]
    assert result["executed"][-1] == "7" and result["outputs"]["7"]["images"][0]["type"] == "output"
    assert printed.err == ""
    assert main(["run", "one/pic_00001_.png", "--out", "two", "--json"]) == 0
    assert (place / "one/pic_00001_.png").read_bytes() == (place / "two/pic_00001_.png").read_bytes()


def without(class_input):
    graph = picture()
    node, _, name = class_input.partition(".")
    del graph[node]["inputs"][name]
    return graph


def circle():
    graph = picture(latent_image=["8", 0])
    return graph | {"8": entry("VAEEncode", pixels=["6", 0], vae=["1", 2])}


BAD = {
    "broken JSON": ('{"1": {"class_type": "KSam', ["not valid JSON", "line 1"]),
    "not a workflow": ("[1, 2]", ["a workflow is a JSON object"]),
    "an unknown node": (picture() | {"9": entry("KSamplr")}, ["“KSamplr”", "Did you mean “KSampler”"]),
    "a missing wire": (without("6.samples"), ["“VAEDecode” (node 6), input “samples”", "nothing is connected"]),
    "a wire from nowhere": (picture(model=["99", 0]), ["input “model”", "node 99"]),
    "a circle": (circle(), ["circle", "node 5", "node 8"]),
    "a wrong type": (picture(model=["1", 2]), ["input “model”", "needs a MODEL", "gives a VAE"]),
    "a wrong value": (picture(steps="many"), ["input “steps”", "“many” is not a whole number"]),
    "a value out of range": (picture(steps=0), ["input “steps”", "0 is below the smallest value, 1"]),
    "a wrong choice": (picture(sampler_name="eular"), ["input “sampler_name”", "Did you mean “euler”"]),
    "no output node": ({"4": picture()["4"]}, ["no output node"]),
}


@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "for programs"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_workflow_is_refused_in_one_message(place, capsys, name, as_json):
    document, said = BAD[name]
    file = write(place, document)
    assert main(["run", file, *(["--json"] if as_json else [])]) == 2
    refused_with(capsys, said, as_json)
    assert sorted(os.listdir(place)) == [file, "models"], "something was written"


def refused_with(capsys, said, as_json=False):
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.startswith("velatura: ")
    for part in said:
        assert part in printed.err
    if as_json:
        report = json.loads(printed.out)
        assert all(part in report["error"] for part in said)
    else:
        assert printed.out == ""


def test_several_mistakes_are_listed_in_one_message(place, capsys):
    graph = picture(steps=0, sampler_name="eular", model=["1", 2])
    assert main(["run", write(place, graph)]) == 2
    refused_with(capsys, ["the workflow has 3 problems", "“steps”", "“sampler_name”", "“model”"])


def lose(place):
    return "small-lost"


def truncate(place):
    weights = place / "models/checkpoints/cut.safetensors"
    whole = next((place / "models/checkpoints/small/unet").glob("*.safetensors"))
    weights.write_bytes(whole.read_bytes()[:5000])
    return weights.name


def pickle_(place):
    import torch

    path = place / "models/checkpoints/old.ckpt"
    torch.save({"state_dict": {}}, path)
    return path.name


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lose, ["“small-lost”", "not one of", "Did you mean “small”"]),
        (truncate, ["cut.safetensors"]),
        (pickle_, ["old.ckpt", "safetensors"]),
    ],
)
def test_a_bad_model_file_is_refused_in_one_message(place, capsys, break_, said):
    graph = picture()
    graph["1"]["inputs"]["ckpt_name"] = break_(place)
    assert main(["run", write(place, graph), "--json"]) == 2
    refused_with(capsys, said, as_json=True)
    assert not (place / "output").exists(), "something was written"


def test_an_unwritable_folder_is_found_out_before_the_work(place, capsys):
    (place / "file").write_text("in the way")
    assert main(["run", write(place, picture()), "--out", "file/sub", "--json"]) == 2
    refused_with(capsys, ["the output folder file/sub", "is a file", "--out"], as_json=True)


def test_a_missing_workflow_file_is_said(place, capsys):
    assert main(["run", "nowhere.json"]) == 2
    refused_with(capsys, ["there is no workflow file nowhere.json"])


def test_ctrl_c_cancels_within_a_step_and_leaves_nothing(place):
    """From outside, as a user does it."""
    write(place, picture(steps=2000))
    command = [sys.executable, "-m", "velatura.runtime", "run", "flow.json", "--out", "here"]
    # A shell's background job ignores Ctrl+C and hands that on; a user's terminal does not.
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    seen = b""
    while b"KSampler" not in seen and process.poll() is None:
        seen += process.stderr.read1()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, b"")
    assert b"Cancelled." in err and b"Traceback" not in err
    assert not (place / "here").exists()


def test_nodes_are_listed_and_described(capsys):
    assert main(["nodes"]) == 0
    listed = capsys.readouterr().out
    assert "VelaturaDemoModel" in listed and "KSampler" in listed
    assert main(["nodes", "KSampler"]) == 0
    described = capsys.readouterr().out
    assert "input  steps: INT, 1 to 10000, default 20" in described and "output LATENT: LATENT" in described
    assert main(["nodes", "VelaturaDemoModel", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)["VelaturaDemoModel"]
    assert info["output"] == ["MODEL", "CLIP", "VAE"]


def test_an_unknown_node_gets_the_nearest(capsys):
    assert main(["nodes", "KSamplr"]) == 2
    refused_with(capsys, ["Did you mean “KSampler”"])


def test_an_unknown_benchmark_gets_the_nearest(capsys):
    assert main(["bench", "overhed"]) == 2
    refused_with(capsys, ["Did you mean “overhead”"])


def test_a_benchmarks_figures_are_printed_and_kept(tmp_path, monkeypatch, capsys):
    """The figures file is what later runs are compared with."""
    from velatura.runtime import commands

    monkeypatch.setattr(commands, "RESULTS", tmp_path)
    module = type(sys)("velatura.benchmarks.overhead")
    module.run = lambda progress: progress(1, 1, None) or {"ratio": 1.23456, "other": None}
    monkeypatch.setitem(sys.modules, "velatura.benchmarks.overhead", module)
    assert main(["bench", "overhead", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ratio": 1.23456, "other": None}
    assert json.loads((tmp_path / "overhead.json").read_text()) == {"ratio": 1.23456, "other": None}
    assert main(["bench", "overhead"]) == 0
    assert "ratio  1.235" in capsys.readouterr().out


def test_an_unknown_recipe_gets_the_nearest(capsys):
    assert main(["train", "diffusoin"]) == 2
    refused_with(capsys, ["diffusion"])


def test_help_imports_nothing_heavy():
    """Half a second is gone when torch is imported."""
    code = (
        "import sys\n"
        "from velatura.runtime.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'tqdm') if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]" and "COMMAND" in found.stdout


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run"], ["run", "x", "--nonsense"]])
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "usage: velatura" in capsys.readouterr().err


def test_serving_where_it_cannot_says_what_to_change(tmp_path, capsys):
    import socket

    pytest.importorskip("aiohttp")
    command = ["serve", "--user-dir", str(tmp_path / "user"), "--out", str(tmp_path / "out"), "--port"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*command, str(taken.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err
    assert main([*command, "70000"]) == 2
    assert "--port: expected a number" in capsys.readouterr().err
