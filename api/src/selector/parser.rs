//! The text form of label selectors: a lexer and a recursive descent over its tokens, one requirement at a time.

use super::SelectorError;
use super::labels::{Operator, Requirement};
use crate::field::FieldError;
use crate::names;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    End,
    Open,
    Close,
    Comma,
    Not,
    Symbol(Operator, &'a str),
    /// `in` or `notin`, which may also be values.
    Keyword(Operator, &'a str),
    Word(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::End => "",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Not => "!",
            Token::Symbol(_, text) | Token::Keyword(_, text) | Token::Word(text) => text,
        }
    }

    /// The identifier that the token is where values are expected.
    fn word(self) -> Option<&'a str> {
        match self {
            Token::Word(text) | Token::Keyword(_, text) => Some(text),
            _ => None,
        }
    }
}

fn is_special(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

/// Tokens of `text`; the last one is `End`.
fn scan(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let (token, len) = match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            // A NUL ends the text, as upstream's lexer has it.
            0 => break,
            b'(' => (Token::Open, 1),
            b')' => (Token::Close, 1),
            b',' => (Token::Comma, 1),
            b'=' if rest.starts_with("==") => (Token::Symbol(Operator::DoubleEquals, "=="), 2),
            b'=' => (Token::Symbol(Operator::Equals, "="), 1),
            b'!' if rest.starts_with("!=") => (Token::Symbol(Operator::NotEquals, "!="), 2),
            b'!' => (Token::Not, 1),
            b'>' => (Token::Symbol(Operator::GreaterThan, ">"), 1),
            b'<' => (Token::Symbol(Operator::LessThan, "<"), 1),
            _ => {
                let end =
                    |b: u8| b == 0 || is_special(b) || matches!(b, b' ' | b'\t' | b'\r' | b'\n');
                let len = rest.bytes().position(end).unwrap_or(rest.len());
                let word = &rest[..len];
                let token = match word {
                    "in" => Token::Keyword(Operator::In, word),
                    "notin" => Token::Keyword(Operator::NotIn, word),
                    _ => Token::Word(word),
                };
                (token, len)
            }
        };
        tokens.push(token);
        at += len;
    }
    tokens.push(Token::End);
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Some(key) = token.word() else {
            return Err(found(token, ", expected: identifier"));
        };
        let problems = names::qualified_name(key);
        if !problems.is_empty() {
            let error = FieldError::invalid("<nil>", key, problems.join("; "));
            return Err(SelectorError(error.to_string()));
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            let operator = if negated {
                Operator::DoesNotExist
            } else {
                Operator::Exists
            };
            return Requirement::new(key, operator, Vec::new());
        }
        if negated {
            // `!key` takes no operator.
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        let token = self.next();
        let (Token::Symbol(operator, _) | Token::Keyword(operator, _)) = token else {
            return Err(found(token, ", expected: in, notin, =, ==, !=, gt, lt"));
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        let token = self.next();
        token
            .word()
            .map(String::from)
            .ok_or_else(|| found(token, ", expected: identifier"))
    }

    /// `(x,y)`: an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let token = self.next();
        if token != Token::Open {
            return Err(found(token, " expected: '('"));
        }
        let mut values = Vec::new();
        let mut first = true;
        loop {
            let token = self.next();
            match token {
                Token::Word(_) | Token::Keyword(..) => {
                    values.extend(token.word().map(String::from));
                    match self.next() {
                        Token::Comma => {}
                        Token::Close => return Ok(values),
                        other => return Err(found(other, ", expected: ',' or ')'")),
                    }
                }
                Token::Comma => values.push(String::new()),
                Token::Close => {
                    values.push(String::new());
                    return Ok(values);
                }
                other if first => {
                    return Err(found(other, ", expected: ',', ')' or identifier"));
                }
                other => return Err(found(other, ", expected: ',', or identifier")),
            }
            first = false;
        }
    }
}

fn found(token: Token<'_>, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}'{expected}", token.text()))
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser {
        tokens: scan(text),
        at: 0,
    };
    let mut requirements = Vec::new();
    loop {
        match parser.peek() {
            Token::End => return Ok(requirements),
            Token::Not | Token::Word(_) | Token::Keyword(..) => {}
            other => {
                return Err(found(
                    other,
                    ", expected: !, identifier, or 'end of string'",
                ));
            }
        }
        let requirement = parser.requirement().map_err(|SelectorError(e)| {
            SelectorError(format!("unable to parse requirement: {e}"))
        })?;
        requirements.push(requirement);
        match parser.next() {
            Token::End => return Ok(requirements),
            Token::Comma => match parser.peek() {
                Token::Not | Token::Word(_) | Token::Keyword(..) => {}
                other => return Err(found(other, ", expected: identifier after ','")),
            },
            other => return Err(found(other, ", expected: ',' or 'end of string'")),
        }
    }
}
