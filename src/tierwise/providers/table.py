"""The providers we know, as rows: where they are, how they want to be spoken to, which variable holds the key.

No keys and no network in here. What differs between providers beyond a row's fields does not belong in this house.
Addresses and quirks are from the providers' own API references (their OpenAI-compatibility pages), read in 2026.
"""

from __future__ import annotations

from collections.abc import Mapping

from tierwise.core.catalogue import Deadlines, OutWire, Provider

# A model on the owner's machine may have to be loaded from disk before its first token.
_LOCAL_DEADLINES = Deadlines(connect_ms=1_000, first_token_ms=300_000)


def _row(
    name: str,
    base_url: str,
    *,
    wire: OutWire = "openai",
    stream_usage: bool = True,
    completion_field: bool = False,
) -> Provider:
    return Provider(
        name=name,
        wire=wire,
        base_url=base_url,
        auth="x-api-key" if wire == "anthropic" else "bearer",
        max_tokens_field="max_completion_tokens" if completion_field else "max_tokens",
        stream_usage=stream_usage,
    )


def _local(name: str, port: int) -> Provider:
    return Provider(
        name=name,
        wire="openai",
        base_url=f"http://127.0.0.1:{port}/v1",
        auth="none",
        local=True,
        bills_abandoned=False,
        deadlines=_LOCAL_DEADLINES,
    )


# In the order in which their models enter a discovered catalogue: the first provider's frontier model is the baseline.
_ROWS = (
    # OpenAI refuses `max_tokens` for its reasoning models and takes `max_completion_tokens` for all.
    _row("openai", "https://api.openai.com/v1", completion_field=True),
    _row("anthropic", "https://api.anthropic.com/v1", wire="anthropic"),
    _row("google", "https://generativelanguage.googleapis.com/v1beta/openai"),
    # Azure has an address per resource, so it needs `base_url` in the configuration:
    # https://RESOURCE.openai.azure.com/openai/v1
    _row("azure", "", completion_field=True),
    # Mistral refuses unknown fields, stream_options among them; it reports usage in the last chunk unasked.
    _row("mistral", "https://api.mistral.ai/v1", stream_usage=False),
    _row("deepseek", "https://api.deepseek.com/v1"),
    _row("xai", "https://api.x.ai/v1", completion_field=True),
    _row("moonshot", "https://api.moonshot.ai/v1"),
    _row("zai", "https://api.z.ai/api/paas/v4"),
    _row("cohere", "https://api.cohere.ai/compatibility/v1"),
    # Perplexity reports usage in its chunks unasked.
    _row("perplexity", "https://api.perplexity.ai", stream_usage=False),
    _row("groq", "https://api.groq.com/openai/v1", completion_field=True),
    _row("cerebras", "https://api.cerebras.ai/v1", completion_field=True),
    _row("together", "https://api.together.xyz/v1"),
    _row("fireworks", "https://api.fireworks.ai/inference/v1"),
    _row("openrouter", "https://openrouter.ai/api/v1"),
    _local("ollama", 11434),
    _local("lmstudio", 1234),
    _local("llamacpp", 8080),
    _local("vllm", 8000),
)

PROVIDERS: Mapping[str, Provider] = {row.name: row for row in _ROWS}

# The first that is set and not blank is the key. The names are those that the providers' own SDKs read.
ENV_KEYS: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
    "mistral": ("MISTRAL_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "xai": ("XAI_API_KEY",),
    "moonshot": ("MOONSHOT_API_KEY",),
    "zai": ("ZAI_API_KEY", "Z_AI_API_KEY"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "perplexity": ("PERPLEXITY_API_KEY", "PERPLEXITYAI_API_KEY", "PPLX_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "cerebras": ("CEREBRAS_API_KEY",),
    "together": ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
    "fireworks": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"),
    "openrouter": ("OPENROUTER_API_KEY",),
}

# Another address for the same provider: a corporate proxy, a regional endpoint, a test server. SDKs read these too.
ENV_URLS: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    "anthropic": ("ANTHROPIC_BASE_URL",),
    "azure": ("AZURE_OPENAI_BASE_URL",),
    "ollama": ("OLLAMA_HOST",),
}

# The id under which genai-prices lists a provider, where it has one.
PRICE_IDS: Mapping[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "azure": "azure",
    "mistral": "mistral",
    "deepseek": "deepseek",
    "xai": "x-ai",
    "moonshot": "moonshotai",
    "zai": "zai",
    "cohere": "cohere",
    "perplexity": "perplexity",
    "groq": "groq",
    "cerebras": "cerebras",
    "together": "together",
    "fireworks": "fireworks",
    "openrouter": "openrouter",
}
