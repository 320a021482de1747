"""Pages for any browser: what they may be made of, their one look, and pictures to compare with a curtain.

    parts -> page.html.j2 with style.css inside -> one file that needs nothing else

The viewer serves the same style.css. Nothing here knows what is shown.
"""
