"""What the words and keys of the view mean."""

from __future__ import annotations

HELP = (
    (
        "Who waits",
        (
            "What the trainer does, and how much of the last ten minutes it has waited. Above that is what "
            "is amiss, below it why no more rollouts start."
        ),
    ),
    (
        "takes long",
        (
            "What more than half of the rollouts were at in the last ten seconds, when the trainer has "
            "waited for half of the time or more; or the loop, where it was late for half of those seconds."
        ),
    ),
    (
        "loop late",
        (
            "The event loop, which all rollouts need, comes 0.25 s late or more, mostly for the function "
            "that is named. While it is late, the speeds of the servers are no measure of them."
        ),
    ),
    (
        "too few",
        (
            "In the last ten seconds more offloaded calls waited for a worker than were made, or a quarter "
            "of the rollouts did."
        ),
    ),
    (
        "budget full",
        (
            "As many trajectories run, are ready or were delivered at this version as staleness allows, and "
            "nothing else keeps more from starting. So it should be while the trainer is at work: generation "
            "keeps ahead of it."
        ),
    ),
    (
        "Progress",
        (
            "How training rollouts ended: accepted (ok), rejected (rej), failed or timed out (bad), stale; "
            "and cancelled (canc), where there are any, as at the end of a run."
        ),
    ),
    (
        "",
        (
            "Pending (pend), running (run), ended in whatever way and not taken by the trainer (ready), "
            "delivered to it (out)."
        ),
    ),
    ("batch", "What the trainer waits for. While it waits for nothing: what is ready for the next batch."),
    ("slots", "Samples that run, of max_concurrent_rollouts."),
    (
        "budget",
        "Trajectories that run + are ready + were delivered at this version, of what staleness allows.",
    ),
    ("staleness", "Of what was delivered, in versions; and how much is allowed."),
    ("lag now", "How many of the rollouts that run began how many versions ago."),
    (
        "in vain",
        "How often one that was too old was run again, and how long such episodes ran; where there are any.",
    ),
    ("loop lag", "How late the event loop came in the last seconds, at worst; at rest: nothing runs."),
    ("In flight", "How many rollouts have run for how long, and what they are doing."),
    (
        "Servers",
        (
            "Tokens per second in the last minute, of all requests and, with room, of each; requests in "
            "flight + those that wait for a slot; the version of the weights."
        ),
    ),
    ("SLOW", "A request gets less than half as many tokens per second as from the median server."),
    ("Tokens", "Each block of the line is a second, the last one at its end."),
    (
        "Oldest",
        (
            "The rollouts that have run for longest; those that are at the same, on the same server, in one "
            "line, with the age of the oldest."
        ),
    ),
    ("", ""),
    ("↑ ↓", "Scroll, also with page up and down, home and end."),
    ("← →", "The run before, the next run."),
    ("l", "The list of runs."),
    ("? esc", "This, and back."),
    ("q", "Quit."),
)
"""Words, or keys, and what they mean; a word that is empty belongs to the one before."""
