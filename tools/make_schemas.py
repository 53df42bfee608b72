"""Write the JSON Schemas of recipes and devices, or check that they are fresh (`--check`).

Editors use them: put `# yaml-language-server: $schema=<path>` on a recipe's first line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgetune.device import Device
from edgetune.recipe import Recipe

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file: the model's, with the short forms and the name left out."""
    schema: dict[str, Any] = Recipe.model_json_schema()
    schema["required"] = ["base"]
    properties = schema["properties"]
    properties["base"] = {"anyOf": [{"type": "string"}, properties["base"]]}
    adapter = properties["adapters"]["items"]
    properties["adapters"]["items"] = {"anyOf": [{"type": "string"}, adapter]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def device_schema() -> dict[str, Any]:
    """The schema of a device profile; the name comes from the file."""
    schema: dict[str, Any] = Device.model_json_schema()
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def main() -> int:
    """Write both files, or with `--check` exit 1 when one is stale."""
    stale = []
    for name, schema in (("recipe", recipe_schema()), ("device", device_schema())):
        path = FOLDER / f"{name}.schema.json"
        text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"stale: {', '.join(stale)}; run python tools/make_schemas.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
