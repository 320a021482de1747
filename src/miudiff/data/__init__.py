"""Datasets: what lies in a folder (`layouts`), which part of it is for what (`splits`), what is wrong with it (`check`), tiles for
training (`tiles`), and aligned pairs made from IHC images alone (`twin`)."""
