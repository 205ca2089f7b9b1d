"""Runs every example and writes its page, with what it printed: docs/examples.

.venv/bin/python scripts/run_examples.py [NAME …]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES, PAGES = ROOT / "examples", ROOT / "docs" / "examples"
BY_RANKS = {"accelerate_ddp"}
"""Examples that are started in two processes."""
TITLES = {
    "plain_loop": "A loop of one's own",
    "plan": "A plan",
    "huggingface_trainer": "Hugging Face Trainer",
    "lightning_module": "Lightning",
    "accelerate_ddp": "Accelerate, two processes",
    "skorch_net": "skorch",
    "token_selection": "Tokens of a language model",
    "trl_sft": "TRL's SFTTrainer",
    "your_own_loss": "A loss of one's own",
}


def command(name: str) -> list[str]:
    """Returns the command that starts an example."""
    script = str(EXAMPLES / f"{name}.py")
    if name not in BY_RANKS:
        return [sys.executable, "-W", "ignore", script]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script]


def run(name: str, folder: Path) -> str:
    """Returns what it printed, without what frameworks say of themselves; raises if it failed."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error",
             "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "POSSIBLE_USER_WARNINGS": "off"}  # fmt: skip
    done = subprocess.run(
        command(name), cwd=folder, env=os.environ | quiet, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def page(name: str, output: str) -> str:
    """The page of an example."""
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").strip()
    started = " ".join(command(name)[1:]).replace(f"{EXAMPLES}", "examples")
    started = started.replace("-W ignore ", "").replace("-m torch.distributed.run", "torchrun")
    start = started if started.startswith("torchrun") else f"python {started}"
    return (
        f"# {TITLES[name]}\n\n`{start}`, from a clone of the project, with "
        f"`pip install -e packages/data -e '.[dev]'`.\n\n```py\n{code}\n```\n\n"
        f"It prints:\n\n```text\n{output}\n```\n"
    )


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or TITLES:
        with tempfile.TemporaryDirectory() as folder:
            output = run(name, Path(folder))
        (PAGES / f"{name}.md").write_text(page(name, output), encoding="utf-8")
        print(f"{name}: {output.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
