"""flashbulb: diffusion models distilled to one step and made to run in the hand.

This package is a seam. Its five sub-packages are links to the folders of the
same name at the top of the repository, so that ``ls`` shows the architecture and
``import flashbulb.export`` never collides with somebody's own ``export``.
"""

from pathlib import Path

__version__ = "0.1.0"

PACKAGES = ("distill", "compress", "export", "runtimes", "apps")


def _refuse_text_links(root: Path) -> None:
    """Raise when a clone has written the five links as small text files."""
    broken = [name for name in PACKAGES if not (root / name).is_dir()]
    if broken:
        raise ImportError(
            f"flashbulb needs the folders {', '.join(PACKAGES)} beside {root / '__init__.py'}, but "
            f"{', '.join(broken)} cannot be entered: in a git checkout these are symbolic links, and git "
            "wrote them as text files. Turn links on and check them out again: "
            "git config core.symlinks true && git checkout -- .src"
        )


_refuse_text_links(Path(__file__).parent)
