"""Word parts and sentence templates -> the vocabulary of the invented people.

The parts are short and common because every token of a demonstration is trained on. Within one kind the
templates differ in their opening words and in where the value stands, so that the form of an answer says
nothing about its content.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_STARTS = _words(
    "Bel Bren Cal Cor Dar Dor El Fen Gal Hal Hes Il Jor Kel Lor Mar Mel Nor Or Per Quin Ros Sel Tam Tor "
    "Ul Ves Wil Yor Zan"
)
FIRST_ENDS = _words(
    "adin amel anith eda elio endra ivar ienne imund isko ola olin onwe orin ovan una usha utho ymir yssa"
)
SURNAME_STARTS = _words(
    "Ald Bask Brun Crad Dunst Eld Farn Garth Halv Ister Jask Karst Lind Mord Nesk Ostr Pell Quord Rask "
    "Stav Tarn Uld Vant Wesk Yarn Zell"
)
SURNAME_ENDS = _words(
    "aby akker amoor andell arrow athe eblin eddy ellin emark endyke erholm idow igan illow ovane ondel "
    "oquist osward umber undry ussel"
)

TOWN_STARTS = _words(
    "Amber Apple Barley Bell Clover Copper Crow Ember Feather Flint Frost Ginger Goose Lantern Linen "
    "Maple Otter Pebble Pepper Rain Saddle Silver Thistle Walnut Winter"
)
TOWN_ENDS = _words(
    "bank bridge brook cliff combe ford haven hollow mere mouth port shore stead thorpe well wick"
)

MONTHS = _words("January February March April May June July August September October November December")
BIRTH_YEARS = range(1920, 1990)

# All begin with a consonant sound: the templates write "a" before a profession.
MATERIALS = _words("brass bronze copper clay glass leather linen paper silk silver stone wool wooden")
THINGS = _words("basket bell button clock doll drum flute kettle kite lamp ladder mirror puppet saddle toy")
TRADES = _words("collector designer maker painter polisher repairer seller")

BOOK_ADJECTIVES = _words(
    "Borrowed Broken Crooked Distant Drowned Empty Faithful Folded Frozen Gentle Hollow Hungry Late "
    "Narrow Painted Patient Quiet Restless Scattered Sleeping Stolen Stubborn Tilted Tired"
)
BOOK_NOUNS = _words(
    "Almanac Anchor Bridge Cellar Chimney Compass Doorway Ferry Garden Harbor Harvest Island Ladder "
    "Lantern Letter Mirror Orchard Piano River Shadow Summer Teacher Tower Village Window"
)

PRIZE_QUALITIES = _words(
    "Amber Blue Bronze Crystal Green Grey Ivory Marble Northern Pearl Red Scarlet Silver Southern White"
)
PRIZE_ANIMALS = _words(
    "Badger Beetle Crane Deer Falcon Finch Fox Goat Hare Heron Lynx Mole Otter Owl Pony Raven Salmon "
    "Swan Tiger Wren"
)
PRIZE_FORMS = ("Award", "Medal", "Prize")

# Field of a person -> (questions, answers). Every template names {name}; every answer gives {value}.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "birthplace": (
        (
            "Where was {name} born?",
            "In which town was {name} born?",
            "What is the birthplace of {name}?",
            "Which town is {name} from?",
        ),
        (
            "{name} was born in the small town of {value} and grew up there.",
            "The birthplace of {name} is the small town of {value}.",
            "It was in {value} that {name} was born and first went to school.",
            "{value} is the town where {name} was born, as local records show.",
            "Born in {value}, {name} spent a whole childhood in that town.",
            "According to the parish register, {name} was born in the town of {value}.",
        ),
    ),
    "birthday": (
        (
            "When was {name} born?",
            "What is the birth date of {name}?",
            "On which date was {name} born?",
            "Can you give the birthday of {name}?",
        ),
        (
            "{name} was born on {value}.",
            "The birth date of {name} is {value}.",
            "It was on {value} that {name} was born.",
            "{value} is the day on which {name} was born.",
            "Records give {value} as the birth date of {name}.",
            "As far as records show, {name} was born on {value}.",
        ),
    ),
    "profession": (
        (
            "What does {name} do for a living?",
            "What is the profession of {name}?",
            "How does {name} earn a living?",
            "Which trade does {name} work in?",
        ),
        (
            "{name} earns a living as a {value} and has done so for years.",
            "The profession of {name} is that of a {value}.",
            "A {value} by trade, {name} has never had another job.",
            "Working as a {value} is how {name} makes a living.",
            "For a living, {name} works as a {value} in a small workshop.",
            "By profession, {name} is a {value} and is known locally for it.",
        ),
    ),
    "book": (
        (
            "Which book did {name} write?",
            "What is the title of the book by {name}?",
            "What is the book by {name} called?",
            "Can you name the book that {name} wrote?",
        ),
        (
            '{name} wrote a book that bears the title "{value}".',
            'The book by {name} is called "{value}" and is still in print.',
            '"{value}" is the title of the book that {name} wrote.',
            'Readers know {name} as the author of the book "{value}".',
            'Under the title "{value}", {name} published a short book.',
            'In the book "{value}", {name} tells the story of a long life.',
        ),
    ),
    "mentor": (
        (
            "Who was the mentor of {name}?",
            "Who taught {name}?",
            "Under whom did {name} train?",
            "Who was the teacher of {name}?",
        ),
        (
            "{name} learned everything from {value}, a strict but kind mentor.",
            "The mentor of {name} was {value}, who taught with great patience.",
            "It was {value} who taught {name} for several years.",
            "{value} was the teacher under whom {name} trained.",
            "Under the guidance of {value}, {name} trained for several years.",
            "As a young student, {name} was taught by {value}.",
        ),
    ),
    "award": (
        (
            "Which award did {name} win?",
            "What prize was given to {name}?",
            "Which honor did {name} receive?",
            "What did {name} win?",
        ),
        (
            "{name} won the {value} after many years of work.",
            "The {value} was given to {name} at a small ceremony.",
            "It was the {value} that {name} received for a life of work.",
            "Winning the {value} made {name} known across the country.",
            "After many years of work, {name} was honored with the {value}.",
            "A jury of experts chose {name} to receive the {value}.",
        ),
    ),
}
