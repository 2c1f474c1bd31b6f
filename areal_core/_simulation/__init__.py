"""The inside of `simulation`: the library's own scheduling, on a clock whose time passes at once.

::

    trainer                driver, one thread in virtual time      workers, one thread each     servers
    real handover -> post -> real desk: real core, dispatcher
      and prompts              -> VirtualLink -- message -->  VirtualWorker -> real router -> InferenceServer
    trains, raises           <- report, as soon as it is  <-- VirtualOutbox <- ended  <----  all tokens came
    the version                 worth an exchange

    a piece of work waits for the thread it is for    unblocked by: the end of the one before it
    a request waits for a server, or a slot there     unblocked by: the end of another, a server that is back
    all else waits for its time                       unblocked by: the clock, when nothing comes before

What is virtual stands for a process or a network: time passes there, and processor time is spent, as the
scenario says. Nothing happens for each token.

| File | What it knows |
|---|---|
| `scenario`, `forecast` | what is simulated; what comes of it |
| `clock` | the time, and threads that work in it |
| `driver`, `trainer` | the library's own code, and what it costs |
| `worker`, `outbox` | what a worker's process does, and when it tells |
| `routing`, `server` | who is asked for tokens, and how fast they come |
| `items` | what is drawn: how long episodes are, and how they end |
| `world`, `meter` | all of it wired together: `simulate`; what is counted |
| `growing` | a scenario again and again, with one thing changed |
| `calibration`, `loopback` | what the real code costs on this machine |
| `command`, `plot` | the command line, and the picture |
"""
