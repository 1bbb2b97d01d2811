"""Runs the notebooks of the documentation, and writes what their cells show into them.

python docs/notebooks.py docs/tutorials/own-model.ipynb
"""

import ast
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any


def cells(path: Path) -> Iterator[dict[str, Any]]:
    """The code cells of a notebook, one after the other executed in one namespace, with what they show as their outputs."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    module = sys.modules["__main__"]
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree, said, value = ast.parse("".join(cell["source"])), StringIO(), None
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with redirect_stdout(said):
            exec(compile(tree, str(path), "exec"), namespace)
            vars(module).update({name: part for name, part in namespace.items() if not name.startswith("__")})
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), str(path), "eval"), namespace)
        cell["outputs"] = list(_outputs(said.getvalue(), value))
        yield cell
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _outputs(said: str, value: Any) -> Iterator[dict[str, Any]]:
    """What a cell has printed, and its last value, as a notebook shows them."""
    if said:
        yield {"output_type": "stream", "name": "stdout", "text": said.splitlines(keepends=True)}
    if value is None:
        return
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if callable(html := getattr(value, "_repr_html_", None)):
        data["text/html"] = html().splitlines(keepends=True)
    yield {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}


def main() -> None:
    """Run the notebooks that are named, with a runs folder of their own."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FL_LIGHTNING_RUNS"] = f"{folder}/runs"
            os.environ["FL_LIGHTNING_DATA"] = f"{folder}/data"
            for cell in cells(Path(name)):
                print("".join(cell["source"]).splitlines()[0])


if __name__ == "__main__":
    main()
