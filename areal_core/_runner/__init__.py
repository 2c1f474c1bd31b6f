"""The inside of the runner: one life of it, from ``initialize`` to the end of its thread.

::

    submitter            |  Ledger (any thread, one lock)        |  loop thread
    AsyncTaskRunner  ->  accept -> pending --------------------->  Launcher.launch -> Task
                                   running  <- take_pending           |  deadline, cancel, grace
    wait, claims     <-  take   <- finished <- publish <--------------+  once per loop turn

    lifecycle.py    one life after another, and how the runner is doing: the base of the public class
    life.py         one life: wires the parts together, starts and ends them
    ledger.py       ids, counters, and which job is in which state: what any thread may touch
    shelf.py        finished results, claims on them, and who waits
    launcher.py     starts jobs on the loop and hands each outcome to a sink
    sink.py         what a launcher needs of a sink, of which the ledger is one
    calls.py        the sink behind run() and arun(), whose coroutines are in no ledger
    guest.py        a sink of somebody else's, who is told of the runner's end
    loop_thread.py  the thread, its loop, and what may be posted to it
    late_pool.py    threads for what blocks
    passing.py      threads that a caller starts, and that end soon
    shutdown.py     ends everything on a loop within a deadline
    exit_hook.py    ends every life before the interpreter does
    gate.py         what a thread blocks on
    job.py          one accepted call and its outcome
    ending.py       why a life starts nothing more
    results.py      what callers are given: TimedResult and RunnerStats
    arguments.py    checks of what callers pass
    events.py       every log line
"""
