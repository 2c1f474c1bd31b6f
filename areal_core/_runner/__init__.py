"""The inside of the runner: one life of it, from ``initialize`` to the end of its thread.

::

    submitter            |  Ledger (any thread, one lock)        |  loop thread
    AsyncTaskRunner  ->  accept -> pending --------------------->  Launcher.launch -> Task
                                   running  <- take_pending           |  deadline, cancel, grace
    wait, claims     <-  take   <- finished <- publish <--------------+  once per loop turn

    lifecycle.py    one life after another, and how the runner is doing: the base of the public class
    life.py         one life: wires the parts together, starts and ends them
    ledger.py       ids, counters, finished results and claims: what any thread may touch
    launcher.py     starts jobs on the loop and hands each outcome to a sink, of which the ledger is one
    calls.py        the sink behind run() and arun(), whose coroutines are in no ledger
    loop_thread.py  the thread, its loop, and what may be posted to it
    late_pool.py    threads for what blocks
    passing.py      threads that a caller starts, and that end soon
    shutdown.py     ends everything on a loop within a deadline
    exit_hook.py    ends every life before the interpreter does
    gate.py         what a thread blocks on
    job.py          one accepted call and its outcome
    results.py      what callers are given: TimedResult and RunnerStats
    arguments.py    checks of what callers pass
    events.py       every log line
"""
