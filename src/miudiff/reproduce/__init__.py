"""The paper's Table 1, Table 2 and Figure 3 on any dataset that has the layout, by one command.

    sources     which datasets are asked for              budget       how much work
    cases       a dataset that is ready                   prepare      made ready: divided, shrunk, as files
    whole       made ready to test on alone               scale        micrometres per pixel, the same for all
    rows        which systems and which ablations         training     what the rows need, trained
    translating a row's images                            scoring      their scores
    jobs        what a case needs, made sure of           plan         what is still to do, how long and large
    tables      tables and pages beside the paper's numbers (`published`)
    comparison  one after the other

Every stage leaves files and finds what is done: the same command goes on where it was stopped.
"""

from miudiff.reproduce.comparison import Options, reproduce

__all__ = ["Options", "reproduce"]
