"""Opens and runs a package: onnxruntime, onnxruntime-genai and numpy only."""
