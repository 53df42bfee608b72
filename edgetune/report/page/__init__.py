"""The report as one self-contained HTML page: no network, no script, fit for a phone, a screen
reader and paper.

Plain functions write it, and plots are SVG of our own. altair with vl-convert draws more kinds of
plots, but fixes its colours in each mark, so that dark mode and forced colours fail, scales its
text down with a phone's width, and takes 84 MB that a device would need to show its own report.
Here marks take their colours from the page's style sheet and their places in per cent of the width.
"""
