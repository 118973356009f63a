"""The page that people look at, at ``/`` and ``/live``: its files (HTML, style, script, texts), and what serves them.

Open ``app.js`` to see how it begins, ``files.py`` for how it is served. There is no build step: a browser gets the
files as they are. ``uplot.js`` and ``uplot.css`` are uPlot's, under the licence in ``LICENSE.uplot.txt``.
"""
