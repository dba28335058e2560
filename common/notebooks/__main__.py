"""The commands behind `make format`, `update`, `new`, `solutions`, `publish`, `stamp` and `results`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.course import find_root
from common.notebooks.anatomy import NotebookError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as on the command line, without the program's name.

    Returns:
        0 when all is well; 1 when something was found or went wrong, which is said in words.
    """
    parser = argparse.ArgumentParser(prog="python -m common.notebooks", description="Care for the course's notebooks.")
    parser.add_argument("--root", type=Path, default=find_root(), help="the course, if it is not this one")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("format", help="bring notebooks into normal form")
    one.add_argument("--check", action="store_true", help="only say which are not")
    one.add_argument("paths", nargs="*", type=Path, help="notebooks; without them, the course's own")
    commands.add_parser("rules", help="say which rules the student notebooks break")
    one = commands.add_parser("update", help="bring the course to a newer version, your answers kept")
    one.add_argument("--new", type=Path, help="a folder with the newer course; without it, git's remote")
    one = commands.add_parser("new", help="start a unit")
    one.add_argument("unit", help="its folder, such as phase2_transformers/lab1_attention")
    one.add_argument("title", nargs="?", help="its title, if course.toml does not list it yet")
    one.add_argument("--notebook", help="which of the notebooks that course.toml lists, if not the first")
    one = commands.add_parser("solutions", help="write the solved notebooks into solutions/")
    one.add_argument("--force", action="store_true", help="throw away changes in solutions/")
    commands.add_parser("publish", help="take solutions/ back onto the branch and into the bundle")
    one = commands.add_parser("stamp", help="write addresses, badges and tables into notebooks and READMEs")
    one.add_argument("--check", action="store_true", help="only say what would change")
    one = commands.add_parser("results", help="measure the notebooks and write the tables of results")
    one.add_argument("notebooks", nargs="*", help="only these notebooks or units")
    one.add_argument("--scale", choices=("quick", "full"), help="only this scale")
    options = parser.parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except (NotebookError, ValueError, OSError) as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.command}: stopped. Nothing is lost; the same command carries on.", file=sys.stderr)
        return 130


def _format(options: argparse.Namespace) -> int:
    from common.notebooks import anatomy, normal, rules

    changed = 0
    for path in options.paths or rules.student_notebooks(options.root):
        notebook = anatomy.read(path)
        if path.read_bytes() == normal.to_bytes(notebook):
            continue
        changed += 1
        if options.check:
            print(f"{path}: not in normal form; `make format` mends it.", file=sys.stderr)
        else:
            anatomy.write(notebook, path)
            print(f"{path}: brought into normal form.")
    return int(options.check and changed > 0)


def _rules(options: argparse.Namespace) -> int:
    from common.notebooks import rules

    found = 0
    for path in rules.student_notebooks(options.root):
        for problem in rules.problems(path, path.parent, options.root):
            found += 1
            print(f"{path.relative_to(options.root)}: {problem}", file=sys.stderr)
    return int(found > 0)


def _update(options: argparse.Namespace) -> int:
    from common.notebooks import update

    update.update(options.root, options.new)
    return 0


def _new(options: argparse.Namespace) -> int:
    from common.notebooks import scaffold

    scaffold.new(options.root, options.unit, options.title, notebook=options.notebook)
    return 0


def _solutions(options: argparse.Namespace) -> int:
    from common.notebooks import branch

    branch.make_solutions(options.root, force=options.force)
    return 0


def _publish(options: argparse.Namespace) -> int:
    from common.notebooks import branch

    branch.publish(options.root)
    return 0


def _stamp(options: argparse.Namespace) -> int:
    from common.notebooks import stamp

    changed = stamp.stamp(options.root, check=options.check)
    for path in changed:
        print(f"{path}: {'out of date; run `make stamp`.' if options.check else 'stamped.'}")
    return int(options.check and bool(changed))


def _results(options: argparse.Namespace) -> int:
    from common.notebooks import results

    results.measure(options.root, options.notebooks, options.scale)
    return 0


_COMMANDS = {
    "format": _format,
    "rules": _rules,
    "update": _update,
    "new": _new,
    "solutions": _solutions,
    "publish": _publish,
    "stamp": _stamp,
    "results": _results,
}

if __name__ == "__main__":
    sys.exit(main())
