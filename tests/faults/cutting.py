"""The moments around COMMIT at which a link is cut."""

from __future__ import annotations

COMMIT_NBYTES = len(b"Q....COMMIT.")
ANSWER_NBYTES = len(b"C....COMMIT.Z.....")


def cut_around_commit(proxy, choose):
    """Before COMMIT, after it, soon after it, at any byte of it or its answer, or unseen by the server."""
    kinds = {
        "cut_before": b"COMMIT",
        "cut_after": b"COMMIT",
        "cut_soon_after": (b"COMMIT", choose.uniform(0, 0.004)),
        "cut_within": choose.choice(
            [
                (b"COMMIT", choose.randrange(COMMIT_NBYTES), 0),
                (b"COMMIT", COMMIT_NBYTES, choose.randrange(ANSWER_NBYTES)),
            ]
        ),
        "abandon_before": b"COMMIT",
    }
    kind = choose.choice(list(kinds))
    setattr(proxy, kind, kinds[kind])
    return kind
