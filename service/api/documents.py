"""What /openapi.json says of keys: which routes need one, and how they refuse without."""

from typing import Any

from fastapi import FastAPI

from service.api.access import SCOPE_OF
from service.api.schemas import problems

_REFUSALS = {str(status): said for status, said in problems(401, 403, 429).items()}


class DocumentedApp(FastAPI):
    """An app whose documents follow the table of scopes."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "http", "scheme": "bearer"}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if (needed := SCOPE_OF[method.upper(), path]) != "open":
                    operation["security"] = [{"key": []}]
                    operation["responses"] |= _REFUSALS
                    operation["x-scope"] = needed
        return document
