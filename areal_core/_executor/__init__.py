"""The inside of `WorkflowExecutor`: rollouts from submit to delivery, with bounded staleness.

::

    trainer thread           the thread that owns the core (the loop's)                    trainer thread
    submit        -> desk -> core: line -> admit() -> port.start -> episodes -> judged -> pool -> handover
    prepare_batch    post    budget?  slots?          a task each   play        kept or   who     masks
    set_version              paused?                                            not       waits?  what is old

    pending rollouts    wait for a unit and a slot        unblocked by: submit, an end, a new version, resume
    episodes            wait for tokens, or their reward  unblocked by: reply, deadline, cancel
    callers             wait for outcomes                 unblocked by: an end, the runner's end, a timeout

| File | What it knows |
|---|---|
| `rollout`, `outcome`, `rules` | the words: unit, group, member, verdict, outcome; the settings |
| `core`, `serving` | every event, and what follows from it; one thread, no I/O, no locks |
| `budget`, `line`, `scheduler` | what may start, who is next, groups |
| `freshness`, `ageing`, `ending`, `hold` | what is too old, how a rollout ended, whether a batch waits |
| `delivery`, `requests`, `standstill`, `patience` | who waits for what, and when to give up |
| `books`, `report` | where all rollouts are; how stale what was trained on is |
| `port` | what the core needs of the world; `desk` is that world on a runner's loop |
| `answer` | what a caller's thread gets of the loop's |
| `handover`, `prompts`, `work`, `settings`, `shift` | the callers' threads, what they give, and the wiring |
| `playing`, `events` | one episode; the log |
| `bundle` | what can wait until it is done for many at once |
| `journaling`, `recovery`, `resumed` | what the journal is told; what an earlier run left in it |
| `looking`, `explaining`, `capacity`, `explanation` | what it says of itself when asked, and in which words |
| `observer`, `snapshot`, `wording` | the same in numbers, for all who show it |
| `stuck` | when it says so unasked |
| `committing` | what the trainer says of its checkpoints |
| `steering`, `versions` | what it says beside its rollouts: stop them, go on, there is a new version |
| `aside` | looking, and opening files, in a thread where no Ctrl-C comes |
| `within` | a caller's coroutine with a limit of time |
"""
