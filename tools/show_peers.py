"""The frontier of schemes on a model's general text, with llama.cpp's types beside it, as a table.

    python tools/make_smollm2.py
    python tools/show_peers.py smollm2-135m --llama-cpp llama.cpp/build/bin --convert llama.cpp

The text is English prose that comes with Python (`pydoc_data.topics`): some of its topics are
measured on, others are for calibration. Rows of edgetune are builds through the command. llama.cpp
runs in its own programs, converted from the same folder, against its own float32. KL of both is of
tokens that stand behind 128 others: llama-perplexity measures the second half of windows of 256
tokens, edgetune's report has KL by position. Speed is by llama-bench with the same number of
threads; llama.cpp's converter wants the package sentencepiece. The builder's default int4 is
`w4a16-rtn`: the same bytes where the embedding is tied.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from edgetune.sources.overlap import matches

SCHEMES = (
    *("w8a16-rtn", "w8a16-rtn-g128", "w4a16-rtn", "w4a16-kquant-mixed", "w4a16-kquant-selective"),
    *("w4a16-gptq", "w4a16-gptq-selective"),
)
TYPES = ("Q8_0", "Q4_K_M", "Q4_0")
WINDOW, PROMPT, NEW = 256, 128, 64
# About 250 tokens; few of a topic, so that many topics are seen.
_CHARACTERS, _OF_A_TOPIC, _EVALUATED, _CALIBRATED = 1050, 4, 24, 48
# As llama-perplexity writes them.
_MEAN_KL, _SAME_TOP = r"Mean\s+KLD:\s+([\d.]+)", r"Same top p:\s+([\d.]+)"
COLUMNS = ("", "MB", "KL, nats", "top-1", "prefill, tokens/s", "decode, tokens/s")


def stretches() -> list[list[str]]:
    """Of every long topic, by its name: its first stretches of prose, of one length."""
    found = []
    for name in sorted(topics):
        text = re.sub(r"\s+", " ", topics[name]).strip()
        cuts = range(0, min(len(text), _OF_A_TOPIC * _CHARACTERS) - _CHARACTERS + 1, _CHARACTERS)
        parts = [text[cut : cut + _CHARACTERS].rsplit(" ", 1)[0] for cut in cuts]
        found += [parts] if parts else []
    return found


def write_recipe(model: Path, out: Path) -> tuple[Path, Path]:
    """(recipe, text): what edgetune builds from, and the evaluation's text as a plain file."""
    out.mkdir(parents=True, exist_ok=True)
    prose = stretches()
    step = max(1, len(prose) // _EVALUATED)
    evaluated = [parts[0] for parts in prose[::step]]
    rest = [part for number, parts in enumerate(prose) if number % step for part in parts]
    rest = rest[:: max(1, len(rest) // _CALIBRATED)]
    # Topics repeat each other, and a build refuses text that is measured and calibrated on.
    known = matches(dict(enumerate(rest)), dict(enumerate(evaluated)))
    repeated = {match.line for match in known}
    rest = [part for number, part in enumerate(rest) if number not in repeated]
    for name, rows in (("evaluation", evaluated), ("calibration", rest)):
        lines = (json.dumps({"text": row}) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "text.txt").write_text("\n\n".join(evaluated), encoding="utf-8")
    recipe = {
        "base": str(model.resolve()),
        "task": "text-generation",
        "data": {"evaluation": "evaluation.jsonl", "calibration": "calibration.jsonl"},
        "tolerances": {"kl_mean": 0.05, "retention": None},
    }
    (out / "general-text.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return out / "general-text.yaml", out / "text.txt"


def own_rows(
    recipe: Path, schemes: Sequence[str], device: str | None, out: Path
) -> list[list[str]]:
    """What `edgetune search` measured."""
    command = [sys.executable, "-m", "edgetune", "search", str(recipe), "-o", str(out), "--json"]
    command += ["-d", device] if device else []
    for scheme in schemes:
        command += ["--scheme", scheme]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return [
        [
            row["scheme"],
            f"{row['graph_bytes'] / 1e6:.1f}",
            f"{kl_behind(json.loads(Path(row['report']).read_text(encoding='utf-8'))):.2g}",
            _interval(row["top1_agreement"], "{:.3f}"),
            *(f"{row[key]:.0f}" if row[key] else "not measured" for key in
              ("prefill_tokens_per_s", "decode_tokens_per_s")),
        ]
        for row in json.loads(done.stdout)["rows"]
        if row["graph_bytes"] is not None
    ]  # fmt: skip


def kl_behind(report: Mapping[str, Any]) -> float:
    """Mean KL over the tokens behind the first half of a window, in nats."""
    rows = [row for row in report["fidelity"]["kl_by_position"] if row["first"] > WINDOW // 2]
    count = sum(int(row["positions"]) for row in rows)
    return sum(float(row["kl"]["value"]) * int(row["positions"]) for row in rows) / count


def peer_rows(
    model: Path,
    text: Path,
    programs: tuple[Path, Path],
    types: Sequence[str],
    threads: int,
    timed: bool,
) -> list[list[str]]:
    """What llama.cpp's own programs say of its types of the same model; `programs`: the folder of
    its binaries, and its source."""
    binaries, source = programs
    folder = text.parent / "gguf"
    folder.mkdir(exist_ok=True)
    whole, base = folder / "f32.gguf", folder / "f32.kld"
    if not whole.is_file():
        convert = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(model)]
        known = [str(source / "gguf-py"), *filter(None, [os.environ.get("PYTHONPATH")])]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(known)}
        _run([*convert, "--outtype", "f32", "--outfile", str(whole)], environment=paths)
    measure = [str(binaries / "llama-perplexity"), "-f", str(text), "-c", str(WINDOW)]
    measure += ["-t", str(threads), "--kl-divergence-base", str(base)]
    _run([*measure, "-m", str(whole)])
    rows = []
    for kind in types:
        file = folder / f"{kind}.gguf"
        _run([str(binaries / "llama-quantize"), str(whole), str(file), kind])
        said = _run([*measure, "-m", str(file), "--kl-divergence"])
        speeds = []
        if timed:
            bench = [str(binaries / "llama-bench"), "-m", str(file), "-t", str(threads)]
            said_of = _run([*bench, "-o", "json", "-p", str(PROMPT), "-n", str(NEW)])
            speeds = json.loads(said_of)
        rows.append(
            [
                f"llama.cpp {kind}",
                f"{file.stat().st_size / 1e6:.1f}",
                _figure(said, _MEAN_KL),
                f"{float(_figure(said, _SAME_TOP)) / 100:.3f}",
                *(_speed(speeds, key) for key in ("n_prompt", "n_gen")),
            ]
        )
    return rows


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def _figure(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"llama-perplexity said nothing of {pattern!r}:\n{text[-2000:]}")
    return found[1]


def _speed(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return next((f"{row['avg_ts']:.0f}" for row in rows if row[key]), "not measured")


def _interval(figure: Mapping[str, float], form: str) -> str:
    value, low, high = (form.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--schemes", nargs="*", default=SCHEMES)
    parser.add_argument("-d", "--device", help="one that is not here: no speeds of edgetune's rows")
    parser.add_argument("--no-speed", action="store_true", help="no speeds of llama.cpp's rows")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--llama-cpp", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--convert", type=Path, help="llama.cpp's source, for its converter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    recipe, text = write_recipe(options.model, options.out / "general-text")
    rows = []
    if options.schemes:
        rows = own_rows(recipe, options.schemes, options.device, options.out / "builds")
    if options.llama_cpp:
        programs = options.llama_cpp, options.convert
        given = programs, options.types, options.threads, not options.no_speed
        rows += peer_rows(options.model, text, *given)
    for row in (COLUMNS, ["---"] * len(COLUMNS), *sorted(rows, key=lambda row: float(row[1]))):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
