"""Runs the module's tests and executes every notebook; fails on any error.

  COTERIE=build/release/bin/coterie python notebooks/execute.py [NAME...]

Executed copies, with their outputs, go to notebooks/out/; the notebooks themselves stay without outputs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS_PER_CELL = 180


def execute(path: Path) -> str | None:
    """Executes one notebook; the error's last lines, or nothing."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}
    )
    error = None
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as caught:
        error = "\n".join(str(caught).strip().splitlines()[-8:])
    (HERE / "out").mkdir(exist_ok=True)
    nbformat.write(notebook, HERE / "out" / path.name)
    return error


def main() -> int:
    sys.path.insert(0, str(HERE))
    from coterie_figures import program

    # Notebooks run in this folder; relative paths in the environment are meant from the caller's.
    os.environ["COTERIE"] = str(Path(program()).resolve())
    if figures := os.environ.get("COTERIE_FIGURES"):
        os.environ["COTERIE_FIGURES"] = str(Path(figures).resolve())
    passed, failed = 0, 0

    def report(name: str, start: float, error: str | None) -> None:
        nonlocal passed, failed
        failed += error is not None
        passed += error is None
        print(f"{'FAILED' if error else 'passed'}  {name}  {time.monotonic() - start:.1f} s", flush=True)
        if error:
            print(error, flush=True)

    if len(sys.argv) == 1:
        start = time.monotonic()
        tests = subprocess.run([sys.executable, "-m", "unittest", "-q", "test_coterie_figures"], cwd=HERE,
                               capture_output=True, text=True, check=False)
        report("test_coterie_figures.py", start, tests.stderr if tests.returncode else None)
    wanted = sys.argv[1:]
    notebooks = sorted(path for path in HERE.glob("*.ipynb") if not wanted or path.stem in wanted)
    if not notebooks:
        print(f"no notebook named {' or '.join(wanted)}")
        return 2
    for path in notebooks:
        start = time.monotonic()
        report(path.name, start, execute(path))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
