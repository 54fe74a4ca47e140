"""files of runs and evaluations -> one HTML page that opens from disk.

``sources`` reads the files, ``verdict``, ``curves``, ``answers``, ``membership``, ``tradeoff`` and ``repeat``
each make one part of the page, ``page`` puts them together and writes the file.
"""
