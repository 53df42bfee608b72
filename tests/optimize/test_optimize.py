"""The whole step on tiny models: numbers, files, bytes, and how a failure is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.graph_weights import pieces_of, read_matrices, whole_weight
from edgetune.child import run_child
from edgetune.files import digests_of_folder, dump_json, list_files, read_json
from edgetune.optimize.schemes import make_widths, parse_scheme
from tests.tiny import build_base, edit_tensors

pytestmark = pytest.mark.line

FILES = [
    "chat_template.jinja",
    "genai_config.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
]


def run(function: str, arguments: dict[str, Any], out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    log = out.parent / f"{out.name}.log"
    facts, _ = run_child(
        f"tests.optimize.builds:{function}", arguments, out, log=log, progress=lambda text: None
    )
    return facts


def stored(scheme: str) -> dict[str, Any]:
    """What another scheme would tell the builder of the modules' widths."""
    return make_widths(*parse_scheme(scheme)).as_json()


@dataclass(frozen=True)
class Built:
    """Jobs that were built in one child."""

    folder: Path
    jobs: list[dict[str, Any]]
    facts: dict[str, Any]

    def find(self, checkpoint: str, scheme: str) -> tuple[Path, dict[str, Any]]:
        """Folder and facts of one job."""
        number = next(
            n for n, job in enumerate(self.jobs)
            if Path(job["checkpoint"]).name == checkpoint and job["scheme"] == scheme
        )  # fmt: skip
        return self.folder / str(number), self.facts[str(number)]


def merge_like(source: Path, folder: Path) -> Path:
    """A checkpoint as the merge leaves it: some tensors float32, the others as they were."""
    shutil.copytree(source, folder)

    def touch(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tensor.float() * 1.001 if "o_proj" in name else tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(folder / "model.safetensors", touch)
    config = read_json(folder / "config.json")
    assert config["dtype"] == "bfloat16"
    (folder / "config.json").write_text(dump_json({**config, "dtype": "float32"}))
    return folder


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, tiny_phi3: Path, tiny_llama_tied: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "phi3": merge_like(tiny_phi3, folder / "phi3"),
        "tied": merge_like(tiny_llama_tied, folder / "tied"),
        "window": build_base(folder / "window", "phi3", sliding_window=16),
        # Rows of three groups of 64, whose zero points of 4 bits fill no whole bytes.
        "odd": build_base(folder / "odd", tie_word_embeddings=True, hidden_size=192),
        # Its fused gate and up projection is as wide as the vocabulary, 288.
        "wide": build_base(folder / "wide", "phi3", intermediate_size=144),
        "dynamic": build_base(
            folder / "dynamic",
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        ),
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Built:
    pairs = [
        ("phi3", "fp32"), ("tied", "fp32"), ("window", "fp32"), ("wide", "fp32"),
        ("phi3", "w8a16-rtn"), ("phi3", "w8a16-rtn-g256"), ("phi3", "w4a16-rtn-g16"),
        ("tied", "w8a16-rtn"), ("tied", "w4a16-rtn-g128"), ("dynamic", "fp32"),
        ("phi3", "w4a16-kquant-mixed-g64"), ("tied", "w4a16-kquant-g64"), ("tied", "w4a16-hqq"),
        ("tied", "w4a16-kquant-selective"), ("odd", "w4a16-kquant-g64"),
    ]  # fmt: skip
    jobs = [{"checkpoint": str(checkpoints[name]), "scheme": scheme} for name, scheme in pairs]
    folder = tmp_path_factory.mktemp("built") / "out"
    return Built(folder, jobs, run("build_all", {"jobs": jobs}, folder))


def test_float_graphs_equal_torch(
    built: Built, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Mixed data types, fused and separate projections, tied and separate heads, a window shorter
    than the text, and a layer that looks like a head."""
    names = ["phi3", "tied", "window", "wide"]
    pairs = [[str(checkpoints[name]), str(built.find(name, "fp32")[0])] for name in names]
    for difference, largest in run("measure_parity", {"pairs": pairs}, tmp_path / "p").values():
        assert difference <= 1e-4 * max(1.0, largest)


@pytest.mark.parametrize(
    ("checkpoint", "scheme", "bits", "group", "embedding"),
    [
        ("phi3", "fp32", None, None, "float32"),
        ("phi3", "w8a16-rtn", 8, 32, "int8"),
        ("phi3", "w8a16-rtn-g256", 8, 256, "int8"),
        ("phi3", "w4a16-rtn-g16", 4, 16, "int8"),
        ("phi3", "w4a16-kquant-mixed-g64", [4, 8], 64, "int8"),
        ("tied", "fp32", None, None, "float32, shared with the head"),
        ("tied", "w8a16-rtn", 8, 32, "int8, shared with the head"),
        ("tied", "w4a16-rtn-g128", 4, 128, "int4, shared with the head"),
        ("tied", "w4a16-kquant-g64", 4, 64, "int4, shared with the head"),
        ("tied", "w4a16-hqq", 4, 32, "int4, shared with the head"),
        ("tied", "w4a16-kquant-selective", [4, 8], 32, "int8, shared with the head"),
    ],
)
def test_what_is_read_back(
    built: Built, checkpoint: str, scheme: str, bits: int | None, group: int | None, embedding: str
) -> None:
    folder, facts = built.find(checkpoint, scheme)
    found = facts["read_back"]
    assert (found["weight_bits"], found["group_size"]) == (bits, group)
    assert found["embedding"] == embedding
    assert found["last_token_head"]
    assert facts["graph_bytes"] == sum(
        (folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )


def test_the_folder_is_flat_plain_and_names_no_path(
    built: Built, checkpoints: dict[str, Path]
) -> None:
    folder, _ = built.find("phi3", "w8a16-rtn")
    assert list_files(folder) == FILES
    for name in FILES:
        path = folder / name
        assert path.stat().st_nlink == 1
        assert str(folder.parent).encode() not in path.read_bytes()
        assert str(checkpoints["phi3"].parent).encode() not in path.read_bytes()
    template = (checkpoints["phi3"] / "chat_template.jinja").read_bytes()
    assert (folder / "chat_template.jinja").read_bytes() == template


def test_the_tokenizer_is_the_checkpoints(built: Built, checkpoints: dict[str, Path]) -> None:
    import onnxruntime_genai as og
    from transformers import AutoTokenizer

    model = og.Model(str(built.find("phi3", "w8a16-rtn")[0]))
    ours = og.Tokenizer(model)
    theirs = AutoTokenizer.from_pretrained(checkpoints["phi3"])
    for text in ["the father", "a<|end|>b", "  tabs\t\n", "\u00e9\U0001f600", ""]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert list(ours.encode(text)) == ids


@pytest.mark.parametrize(
    ("checkpoint", "scheme"),
    [
        ("phi3", "fp32"),
        ("phi3", "w8a16-rtn"),
        ("phi3", "w8a16-rtn-g256"),  # its last group of weights is a short one
        ("tied", "fp32"),
        ("tied", "w4a16-rtn-g128"),
    ],
)
def test_streamed_weights_have_the_builders_own_bytes(
    both_ways: tuple[Built, Built], checkpoint: str, scheme: str
) -> None:
    """With float32 scales, as only `w4a16-rtn` and `-h8` ship them; the embedding, where it is one
    of its own, as the builder leaves it: in float32."""
    ours, theirs = (built.find(checkpoint, scheme)[0] for built in both_ways)
    for name in ("model.onnx", "model.onnx.data"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.fixture(scope="module")
def both_ways(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]
) -> tuple[Built, Built]:
    """The same jobs with streamed weights, and by the builder's own methods."""
    (mark,) = test_streamed_weights_have_the_builders_own_bytes.pytestmark  # type: ignore[attr-defined]
    kept = {"protect": {"embed_tokens": "fp32"}, "scale_bits": 32}
    jobs = [
        {"checkpoint": str(checkpoints[name]), "scheme": scheme}
        | ({} if scheme == "fp32" else kept)
        for name, scheme in mark.args[1]
    ]
    folder = tmp_path_factory.mktemp("both-ways") / "out"
    whole = [{**job, "spoil": "load_whole"} for job in jobs]
    facts = run("build_all", {"jobs": [*jobs, *whole]}, folder)
    count = len(jobs)
    later = {str(n): facts[str(n + count)] for n in range(count)}
    for number in range(count):
        (folder / "whole").mkdir(exist_ok=True)
        shutil.move(folder / str(number + count), folder / "whole" / str(number))
    return Built(folder, jobs, facts), Built(folder / "whole", whole, later)


@pytest.mark.parametrize(
    ("checkpoint", "scheme"),
    [("tied", "w4a16-kquant-g64"), ("tied", "w4a16-hqq"), ("tied", "w4a16-kquant-selective"),
     ("odd", "w4a16-kquant-g64"), ("phi3", "w4a16-kquant-mixed-g64"), ("phi3", "w8a16-rtn")],
)  # fmt: skip
def test_the_graph_computes_with_the_weights_that_are_read_back(
    built: Built, checkpoints: dict[str, Path], tmp_path: Path, checkpoint: str, scheme: str
) -> None:
    """torch with the weights that `graph_weights` reads: zero points, widths and an embedding that
    were wrong in the graph would show. What is left is that products take activations of 8 bits."""
    folder, _ = built.find(checkpoint, scheme)
    source, read = checkpoints[checkpoint], tmp_path / "read"
    shutil.copytree(source, read)

    def as_read(tensors: dict[str, Any]) -> dict[str, Any]:
        shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in tensors.items()}
        matrices, own = read_matrices(folder), dict(tensors)
        for name, shape in shapes.items():
            if len(shape) == 2:
                pieces = pieces_of(name, shapes, matrices)
                assert pieces, name
                own[f"{name}.weight"] = whole_weight(pieces)
        return own

    edit_tensors(read / "model.safetensors", as_read)
    pairs = [[str(read), str(folder)], [str(source), str(folder)]]
    ours, exact = run("measure_parity", {"pairs": pairs}, tmp_path / "p").values()
    assert ours[0] / ours[1] < 0.08
    if "w4" in scheme:
        assert exact[0] > 5 * ours[0]


def test_a_shared_embedding_at_8_bits_is_the_heads(
    built: Built, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Its logits differ from torch's by rounding only, as those of a model that is not tied."""
    pairs = [
        [str(checkpoints[name]), str(built.find(name, "w8a16-rtn")[0])] for name in ("tied", "phi3")
    ]
    tied, phi3 = run("measure_parity", {"pairs": pairs}, tmp_path / "p").values()
    assert tied[0] / tied[1] < 0.08
    assert phi3[0] / phi3[1] < 0.08


def test_a_model_that_would_be_wrong_is_refused(built: Built) -> None:
    _, facts = built.find("dynamic", "fp32")
    assert facts["exit_code"] == 4
    assert "rotary embeddings of the kind 'dynamic'" in facts["error"]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"spoil": "fill_disk"}, "the disk is full"),
        ({"spoil": "fill_memory"}, "out of memory while exporting"),
        ({"spoil": "fail"}, "Olive gave no model; its last words: Pass run failed. (KeyError: "),
        ({"spoil": "refuse"}, "ValueError: this builder takes no such option"),
        ({"spoil": "write_nothing"}, "Olive gave no model; its last words: "),
        ({"spoil": "forget_data"}, "no model.onnx.data in its output folder"),
        (
            {"options": {"widths": stored("w8a16-rtn-g64")}},
            "is w8-g64 and scales in 8 bits, wanted w8-g32",
        ),
        (
            {"options": {"widths": stored("w4a16-rtn")}},
            "is w4-g32, wanted w8-g32 and scales in 8 bits",
        ),
        (
            {"options": {"widths": stored("w4a16-kquant")}},
            "w4-g32 with zero points and scales in 8 bits, wanted w8",
        ),
        ({"options": {"prune_lm_head": False}}, "last_token_head is False, wanted True"),
        ({"options": {"accuracy_level": 0}}, "accuracy_level is 0, wanted 4"),
        ({"options": {"precision": "fp32"}}, "qkv_proj is fp32, wanted w8-g32"),
    ],
    ids=str,
)
def test_a_failure_is_told(failures: dict[str, Any], job: dict[str, Any], words: str) -> None:
    found = failures[str(job)]
    assert found["exit_code"] == (3 if "fill" in str(job) else 6)
    assert words in found["error"]
    assert ".olive" not in found["left"]


@pytest.fixture(scope="module")
def failures(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]
) -> dict[str, Any]:
    (mark,) = test_a_failure_is_told.pytestmark  # type: ignore[attr-defined]
    cases = [job for job, _ in mark.args[1]]
    jobs = [{"checkpoint": str(checkpoints["phi3"]), "scheme": "w8a16-rtn", **c} for c in cases]
    facts = run("build_all", {"jobs": jobs}, tmp_path_factory.mktemp("failures") / "out")
    return {str(case): facts[str(number)] for number, case in enumerate(cases)}


@pytest.mark.slow
def test_the_same_bytes_elsewhere(
    built: Built, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Another folder, hash seed, time zone, locale, umask and working folder, and a git repository
    around it all."""
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    git = ["git", "-C", str(elsewhere), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "its own"], check=True)
    moved = shutil.copytree(checkpoints["phi3"], elsewhere / "moved")
    out = elsewhere / "out"
    out.mkdir()
    code = (
        "import os, sys; from pathlib import Path; os.umask(0o077)\n"
        "from tests.optimize.builds import build_all\n"
        f"build_all({{'jobs': [{{'checkpoint': {str(moved)!r}, 'scheme': 'w8a16-rtn'}}]}},\n"
        f"    Path({str(out)!r}), lambda text: None)"
    )
    environment = {
        **os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HOME": str(elsewhere),
        "GIT_DIR": str(elsewhere / ".git"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    here, _ = built.find("phi3", "w8a16-rtn")
    assert digests_of_folder(out / "0") == digests_of_folder(here)
