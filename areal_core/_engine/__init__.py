"""The inside of the engine: from a request to its tokens, and the servers in between.

::

    workflow               | this process                                             | server
    agenerate(request) --> Generation: until the last token                           |
                             Opening   waits while generation is paused               |
                             Router    chooses a server, and counts                   |
                             Attempt ---- Exchange ---- Backend's HttpCall ---------> generates
                             versions, tokens <- Piece <- Backend's Reader <--------- replies, streams
                             Patience  what failed: again? after how long?            |
                             aborts    nothing runs on where something else is sent   |
    trainer                |                                                          |
    update, pause -------> Control   all servers in rotation ---------------------->  |
                             Policy    the version, who subscribed                    |
                           Prober, Recovery   servers that are out: health, weights   |

    running.py      one life of an engine: the parts, wired together
    following.py    servers of which another engine has control: what they show, and what was told
    generation.py   one agenerate                   attempt.py    one request of it at one server
    limits.py       what ends it from outside       deadlines.py  one timer for all of a loop
    retries.py      what may be tried again, and when
    aborts.py       ending attempts                 resting.py    the time between attempts, and where next
    proof.py        that tokens come from the right weights
    router.py       servers, conversations, slots   server.py     one server, and who waits for it
    standing.py     which server is better avoided
    opening.py      whether generation is open      policy.py     the policy version and its weights
    control.py      what the trainer does           calls.py      one call to many, and their answers
    updating.py     weights to all, or to none      loading.py    weights for one server
    insisting.py    calls that have to get through
    prober.py       looks after servers             recovery.py   brings one into rotation
    speeds.py       how fast each server is         slow_servers.py   tells of the slow ones
    cut.py          calls end with their server     turn.py       one at a time, on any loop
    lookout.py      on which loop the prober is     waking.py     tasks that wait, from any thread
    subscribers.py  who is told of versions, and of generation that opens and closes
    backend.py      the port to dialects: pure      backends/     SGLang, vLLM, OpenAI, one file each
    wire/           one HTTP exchange, and foreign JSON             events.py     every log line
"""
