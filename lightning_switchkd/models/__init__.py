"""Vision-language models: adapters, loading, composition, generation, export and conversion."""
