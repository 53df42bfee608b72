"""Step 3: merged checkpoint -> ONNX graph, through Olive."""
