//! `ClassNames`: what a job's classes are called, in the order of their numbers.

use serde::{Deserialize, Serialize};

use crate::job::shape::CLASSES_MAX;

/// The names of a job's classes. Their order is part of the job: a class is a number to the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct ClassNames(Vec<String>);

/// Longest name in bytes: a file system's folder.
const NAME_LEN_MAX: usize = 255;

/// CIFAR-10's classes.
pub const CIFAR10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// CIFAR-100's fine classes.
pub const CIFAR100: &str = "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus \
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup \
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion \
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear \
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark \
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone \
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm";

impl ClassNames {
    /// Names in their order.
    ///
    /// # Errors
    /// When they are none or too many, or one is empty, too long, there twice, or cannot be printed.
    pub fn new(names: Vec<String>) -> Result<Self, String> {
        if !(1..=CLASSES_MAX).contains(&names.len()) {
            return Err(format!("{} classes, expected 1 to {CLASSES_MAX}", names.len()));
        }
        for (index, name) in names.iter().enumerate() {
            let shown = name.escape_debug();
            if name.trim().is_empty() || name.len() > NAME_LEN_MAX {
                return Err(format!("class {index} has a name of {} bytes", name.len()));
            }
            if name.chars().any(char::is_control) {
                return Err(format!("class {index}, '{shown}', has control characters"));
            }
            if names[..index].contains(name) {
                return Err(format!("class '{shown}' is there twice"));
            }
        }
        Ok(Self(names))
    }

    /// CIFAR-100's.
    pub fn cifar100() -> Self {
        Self(CIFAR100.split_whitespace().map(str::to_owned).collect())
    }

    /// Classes that have numbers only.
    ///
    /// # Errors
    /// When they are none or too many.
    pub fn numbered(count: usize) -> Result<Self, String> {
        Self::new((0..count.min(CLASSES_MAX + 1)).map(|index| index.to_string()).collect())
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of a class.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|known| known == name)
    }
}

impl Default for ClassNames {
    fn default() -> Self {
        Self(CIFAR10.map(str::to_owned).into())
    }
}

impl TryFrom<Vec<String>> for ClassNames {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        Self::new(names)
    }
}

impl From<ClassNames> for Vec<String> {
    fn from(classes: ClassNames) -> Self {
        classes.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_that_could_not_be_told_apart_or_printed() {
        let new = |names: &[&str]| ClassNames::new(names.iter().map(|n| n.to_string()).collect());
        assert_eq!(new(&["a", "b"]).expect("valid").index("b"), Some(1));
        for wrong in
            [&[][..], &["a", "a"], &["a", ""], &["a", "\x1b[2J"], &["x".repeat(256).as_str()]]
        {
            assert!(new(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(ClassNames::cifar100().len(), 100);
        assert!(ClassNames::new(ClassNames::cifar100().into()).is_ok());
        assert_eq!(ClassNames::numbered(3).expect("valid").names(), ["0", "1", "2"]);
        assert!(ClassNames::numbered(0).is_err() && ClassNames::numbered(257).is_err());
        assert!(serde_json::from_str::<ClassNames>(r#"["a","a"]"#).is_err());
    }
}
