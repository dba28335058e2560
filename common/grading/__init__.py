"""Submissions in, grades out: `python -m common.grading FOLDER`, or `make grade SUBMISSIONS=FOLDER`.

`collect` finds each student's notebooks and answer files and grafts their answers onto the course's own notebook,
`pool` runs each submission in worker processes, `worker` is what happens inside one, `output` writes the results.
Answers in prose are marked by a person: `marking` writes the page to read, `marks` takes the marks in.

The seam between what is trusted and what is not runs through `worker`: `Session` holds the student's code,
`judge` holds the checks and meets an answer only through the `common.checks.Answer` that the session hands
out, and results leave a worker only as JSON.

What is contained: an endless loop, a crash, `os._exit`, memory (on Linux), output, file sizes, and
child processes that stay in the worker's process group.

What is not: session and judge still share one process, so code that is written to cheat can reach the checks
and the results; the network, the file system and the environment are open to it; a child process that leaves
the group survives; and code that kills the server of all workers costs other submissions the answer they were
busy with. Isolation comes later: until then grade strangers' code on a machine that may be lost.
"""
