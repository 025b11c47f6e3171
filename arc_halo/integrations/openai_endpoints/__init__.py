"""Members behind HTTP, of any server that speaks OpenAI's protocol; the extra ``endpoints``.

Endpoint
    An address with its key, model and prices, under a name; configured in the environment, never in the database.
"""

from arc_halo.integrations.openai_endpoints.member import EndpointMember, endpoint_members
from arc_halo.integrations.openai_endpoints.settings import EndpointSettings, load_endpoint

__all__ = ["EndpointMember", "EndpointSettings", "endpoint_members", "load_endpoint"]
