"""Names and numbers that tasks ask for."""

import random

CITIES = (
    "Aarhus", "Bergen", "Bologna", "Bordeaux", "Bruges", "Cardiff", "Coimbra", "Cork", "Debrecen", "Dresden",
    "Ghent", "Graz", "Haarlem", "Kaunas", "Leipzig", "Lugano", "Malaga", "Nantes", "Odense", "Oulu", "Padua",
    "Plovdiv", "Porto", "Rotterdam", "Salzburg", "Seville", "Split", "Tampere", "Tartu", "Turin", "Utrecht",
    "Valencia", "Verona", "Zadar",
)  # fmt: skip
PEOPLE = (
    "Adam", "Alice", "Anton", "Bella", "Boris", "Clara", "Daniel", "Diana", "Edith", "Emil", "Felix", "Flora",
    "George", "Greta", "Hugo", "Irene", "Jacob", "Julia", "Karl", "Laura", "Martin", "Nora", "Oscar", "Paula",
    "Robert", "Sofia", "Theo", "Ursula", "Victor", "Wanda",
)  # fmt: skip
NOUNS = (
    "anchor", "apple", "basket", "bottle", "bridge", "candle", "carpet", "castle", "copper", "cotton", "desert",
    "engine", "feather", "garden", "guitar", "hammer", "harbor", "helmet", "island", "jacket", "kettle", "ladder",
    "lantern", "lemon", "marble", "mirror", "needle", "orange", "pepper", "pillow", "pirate", "planet", "pocket",
    "rabbit", "ribbon", "rocket", "saddle", "silver", "spider", "spring", "statue", "ticket", "timber", "tunnel",
    "turtle", "velvet", "violin", "window",
)  # fmt: skip


def number(seed: random.Random, digits: int = 5) -> str:
    """A number of so many digits."""
    return str(seed.randrange(10 ** (digits - 1), 10**digits))


def numbers(seed: random.Random, count: int, digits: int = 5) -> list[str]:
    """Different numbers."""
    return [str(each) for each in seed.sample(range(10 ** (digits - 1), 10**digits), count)]
