"""``flashbulb vote``: ask a person which of two pictures is better, and write the answers to a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from flashbulb.distill.metrics.votes import Question

log = logging.getLogger(__name__)


class VoteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Compare pictures of the same prompts from two or more models, two at a time."""

    folders: tuple[Path, ...]
    """Folders of pictures with the same file names, one folder a model; what flashbulb eval wrote will do."""
    prompts: Path | None = None
    """Prompts: .txt with one a line in the order of the names, .json {name: prompt}, or .jsonl with file_name
    and text; none takes the folders' own metadata.jsonl."""
    out: Path = Path("votes.jsonl")
    """File that the votes are added to; the same file goes on where it was."""
    question: Question = "quality"
    """Ask which picture is better, or which shows the words better."""
    voter: Annotated[str, msgspec.Meta(pattern=r"^[\w.@ -]{1,64}$")] = "anonymous"
    """Who votes; each voter is asked everything once."""
    equal: bool = True
    """Offer a draw."""
    limit: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Most comparisons to ask; none asks all."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8777
    """Port on 127.0.0.1; 0 takes any free one."""
    seed: int = 0
    """Seed of the order and of the sides."""


class VoteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How far a voter has come."""

    voter: str
    question: str
    voted: int
    comparisons: int
    out: str


def run(config: VoteConfig, on_ready: Callable[[str], None] | None = None) -> VoteRecord:
    """Serve the page until Ctrl-C, and return how far the voter has come.

    Args:
        config: what to ask.
        on_ready: is told the page's address once it answers.

    Raises:
        FileNotFoundError: for a folder or file that is not there.
        ValueError: for folders that do not match, prompts that lack, or votes on other pictures.
        RuntimeError: when the port is taken.
    """
    from flashbulb.apps.vote.folders import open_folders, read_prompts
    from flashbulb.apps.vote.ledger import Ledger
    from flashbulb.apps.vote.plan import plan
    from flashbulb.apps.vote.server import Server
    from flashbulb.apps.vote.session import Session

    folders = open_folders(config.folders)
    prompts = read_prompts(config.prompts, folders)
    pairs = plan(folders, prompts, seed=config.seed, voter=config.voter, limit=config.limit)
    session = Session(
        pairs, Ledger(config.out), voter=config.voter, question=config.question, equal=config.equal
    )
    with Server(session, config.port) as server:
        log.info("open %s in a browser on this machine; Ctrl-C ends", server.address)
        log.info("%s: %d of %d voted; votes go to %s", config.voter, session.done, len(pairs), config.out)
        if on_ready is not None:
            on_ready(server.address)
        server.serve_until_stopped()
    return VoteRecord(
        voter=config.voter,
        question=config.question,
        voted=session.done,
        comparisons=len(pairs),
        out=str(config.out),
    )
