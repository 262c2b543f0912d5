"""Pages of the API reference, made from the package when the documentation is built.

    make docs

mkdocs runs this file: each folder of `dpn/` becomes one page with all its public modules, each
module beside them another, so no list of modules is kept by hand. Figures of `experiments/` that
pages show are copied, too.
"""

import ast
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dpn"
FIGURES = {"methods.png": "methods/accuracy.png", "families.png": "mosaic/figures/rows.png"}


def modules(folder: Path) -> list[Path]:
    """Public modules below a folder, its `__init__.py` first."""
    found = [folder / "__init__.py", *sorted(folder.rglob("*.py"))]
    inside = (path.relative_to(folder) for path in dict.fromkeys(found))
    return [folder / p for p in inside if is_public(p)]


def is_public(path: Path) -> bool:
    """Whether no part of a path starts with an underscore, but for `__init__.py`."""
    return not any(part.startswith("_") and part != "__init__.py" for part in path.parts)


def import_name(path: Path) -> str:
    """`dpn.routers.fastv` of `dpn/routers/fastv.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def own_names(path: Path) -> list[str]:
    """Names in `__all__` of an `__init__.py` that no public module shows: of its own functions and
    classes, and of private modules.
    """
    tree, listed, found = ast.parse(path.read_text()), set(), []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = set(ast.literal_eval(node.value))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            found += [alias.name for alias in node.names]
    return [name for name in found if name in listed]


def write_page(name: str, paths: list[Path]) -> str:
    """Write a page about some modules, and return its line in the navigation."""
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        for path in paths:
            page.write(f"::: {import_name(path)}\n    options:\n")
            page.write(f"      heading_level: {1 if path == paths[0] else 2}\n")
            if path.name == "__init__.py":  # its other names are those of the modules below
                page.write(f"      members: {own_names(path) or 'false'}\n")
    return f"- [{name}]({name}.md)\n"


top = {path for path in PACKAGE.iterdir() if is_public(path.relative_to(PACKAGE))}
folders = sorted(path for path in top if (path / "__init__.py").is_file())
files = sorted(path for path in top if path.suffix == ".py")
lines = [write_page("dpn" if path.stem == "__init__" else path.stem, [path]) for path in files]
lines += [write_page(folder.name, modules(folder)) for folder in folders]
with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as navigation:
    navigation.writelines(lines)
for name, figure in FIGURES.items():
    with mkdocs_gen_files.open(f"figures/{name}", "wb") as copy:
        copy.write((ROOT / "experiments" / figure).read_bytes())
