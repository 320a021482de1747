"""The paper's Table 1, Table 2 and Figure 3 on any dataset that has the layout, by one command.

    cases      a dataset made ready: divided, shrunk, as files            budget     how much work
    rows       which systems and which ablations                          training   what the rows need, trained
    plan       what is still to do, how long and how large                comparison translate, score
    tables     tables and pages beside the paper's numbers (`published`)

Every stage leaves files and finds what is done: the same command goes on where it was stopped.
"""

from miudiff.reproduce.comparison import Options, reproduce

__all__ = ["Options", "reproduce"]
