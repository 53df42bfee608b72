"""What each module's quantization costs, measured on calibration text: what `scheme: auto` chooses
widths by. A cached step of its own between reference and optimize; it may use both of their rooms.
"""

# In the step's folder: what every module costs at every width.
RESULT = "sensitivity.json"
