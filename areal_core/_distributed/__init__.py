"""The inside of `distributed`: the executor's scheduling, with workers on Ray for a port.

::

    driver: loop thread                              |  worker: an actor in a process of its own
    core -> start(episodes) -> Dispatcher -> RayLink --give-->  Worker -> Floor -> runner: slots tasks at once
                                  ^  room? drains?   |                      | episodes end
    core <- episodes_ended   <----+<-------- RayLink <--take--  Worker <- Outbox: a batch, or a sign of life
    core <- rollouts_lost    <----'    epoch? known? |

    an episode waits for room at a worker   unblocked by: an end there, a worker that joins
    a lease ends with                       its episode, its worker's death, or when it is handed back

| File | What it knows |
|---|---|
| `leases` | the words: parcel, lease, worker; what comes back of one |
| `dispatcher`, `noting` | which worker plays what; who is alive, full, hung, draining. Also simulated |
| `backlog`, `quarantine` | what waits for a worker; what may be together, as it may be what kills them |
| `far_desk` | the core's port: a dispatcher beside the core, on the loop of the driver |
| `wire`, `packing`, `pickles` | what goes to and fro, in batches; arrays without a copy |
| `letters` | what is to be sent to a worker, until it goes |
| `ray_link`, `crew`, `ray_calls` | what goes through Ray; its actors and their lives. These import it |
| `ray_life` | who started Ray, and who is the last to use it |
| `worker`, `floor`, `outbox` | the process of a worker: its calls, its loop, what waits to be fetched |
| `reading` | what it was given, unpickled: that too may not return |
| `pace` | how often workers are heard of, where they are many |
| `news` | what its engine is told, apart from all that: it may not return |
"""
