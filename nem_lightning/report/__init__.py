"""One self-contained HTML page about a folder of runs: ``python -m nem_lightning.report FOLDER``.

``runs`` reads the runs' folders, ``sweep`` finds what differs and averages over seeds, ``charts`` draws,
``page`` writes. Nothing here imports PyTorch, so the page is written in a second.
"""
