"""Submissions in, grades out: `python -m common.grading FOLDER`, or `make grade SUBMISSIONS=FOLDER`.

`collect` finds each student's notebooks and answer files and grafts their answers onto the course's own notebook,
`pool` gives each of them a `judge`, which holds the checks and starts a contained (`sandbox`) `worker`, in which the
student's code runs; the two exchange plain values (`wire`, `remote`). `journal` keeps each row at once, `output`
and `report` write the results, `flags` and `similar` find what a person should look at. Answers in prose are marked by
a person: `marking` writes the page to read, `marks` takes the marks in.

`proofs` tries the checks themselves, with stored right and wrong answers, and `mutants` with generated ones;
`benchmark` compares the speed with other graders; `gradescope` makes an autograder.

What is trusted with what is in README.md, beside this file.
"""
