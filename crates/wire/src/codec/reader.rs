//! Bytes into values.

use core::str;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess,
    VariantAccess, Visitor, value::U32Deserializer,
};

use super::{EIGHT_BYTES, FOUR_BYTES, Malformed, SINGLE_BYTE_MAX, TWO_BYTES};

/// What has not been read yet.
pub(crate) struct Reader<'de> {
    pub(crate) rest: &'de [u8],
}

impl<'de> Reader<'de> {
    #[inline(never)]
    fn take(&mut self, length: usize) -> Result<&'de [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    // Once for each of sixteen bytes of a key, otherwise.
    #[inline(never)]
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(byte)
    }

    /// A number of at most `bytes_max` bytes.
    #[inline(never)]
    fn unsigned(&mut self, bytes_max: usize) -> Result<u64, Malformed> {
        self.unsigned_inlined(bytes_max)
    }

    #[inline(always)]
    fn unsigned_inlined(&mut self, bytes_max: usize) -> Result<u64, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        if first <= SINGLE_BYTE_MAX {
            return Ok(u64::from(first));
        }
        // A frame has a hash and a time of eight bytes in each entry: read as such, and not byte by byte.
        let (number, length, rest) = match first {
            TWO_BYTES => {
                let (bytes, rest) = rest.split_first_chunk().ok_or(Malformed)?;
                (u64::from(u16::from_le_bytes(*bytes)), 2, rest)
            }
            FOUR_BYTES => {
                let (bytes, rest) = rest.split_first_chunk().ok_or(Malformed)?;
                (u64::from(u32::from_le_bytes(*bytes)), 4, rest)
            }
            EIGHT_BYTES => {
                let (bytes, rest) = rest.split_first_chunk().ok_or(Malformed)?;
                (u64::from_le_bytes(*bytes), 8, rest)
            }
            // The marker of sixteen bytes, and what is none.
            _ => return Err(Malformed),
        };
        if length > bytes_max {
            return Err(Malformed);
        }
        self.rest = rest;
        Ok(number)
    }

    /// A number of the type `T`, in the form that is short on both sides of 0.
    fn signed<T: TryFrom<i64>>(&mut self) -> Result<T, Malformed> {
        let number = self.unsigned(size_of::<T>())?;
        let number = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        T::try_from(number).map_err(|_| Malformed)
    }

    pub(crate) fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.unsigned(size_of::<T>())?).map_err(|_| Malformed)
    }

    /// A length, which takes eight bytes however long the machine's are.
    fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.unsigned(8)?).map_err(|_| Malformed)
    }

    #[inline(never)]
    fn bytes(&mut self) -> Result<&'de [u8], Malformed> {
        let length = self.length()?;
        self.take(length)
    }

    #[inline(never)]
    fn text(&mut self) -> Result<&'de str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    fn float(&mut self) -> Result<f64, Malformed> {
        let bytes = self.take(8)?.first_chunk().ok_or(Malformed)?;
        Ok(f64::from_le_bytes(*bytes))
    }
}

/// A reader of what is long and comes often: its place is one number, and it says at the end whether all was there.
///
/// What could not be read is 0, and so is all that follows.
#[derive(Clone, Copy)]
pub(crate) struct Quick<'de> {
    bytes: &'de [u8],
    /// Beyond the bytes: something could not be read.
    at: usize,
}

impl<'de> Quick<'de> {
    pub(crate) fn new(bytes: &'de [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// What has not been read yet, if all so far could be.
    #[inline(always)]
    pub(crate) fn rest(&self) -> Result<&'de [u8], Malformed> {
        self.bytes.get(self.at..).ok_or(Malformed)
    }

    /// One byte.
    #[inline(always)]
    pub(crate) fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied();
        self.at = if byte.is_some() { self.at + 1 } else { usize::MAX };
        byte.unwrap_or(0)
    }

    /// A number of at most eight bytes. Inlined, also where size comes first, and for a long one it lends out a copy: so the
    /// thousands of numbers of a frame are read with the place in a register.
    #[inline(always)]
    pub(crate) fn number(&mut self) -> u64 {
        match self.bytes.get(self.at) {
            Some(&byte) if byte <= SINGLE_BYTE_MAX => {
                self.at += 1;
                u64::from(byte)
            }
            Some(_) | None => {
                let mut copy = *self;
                let number = copy.long_number();
                self.at = copy.at;
                number
            }
        }
    }

    #[inline(never)]
    fn long_number(&mut self) -> u64 {
        let mut reader = Reader { rest: self.bytes.get(self.at..).unwrap_or_default() };
        let number = reader.unsigned_inlined(8);
        self.at = match number {
            Ok(_) => self.bytes.len() - reader.rest.len(),
            Err(Malformed) => usize::MAX,
        };
        number.unwrap_or(0)
    }

    /// A text.
    #[inline(never)]
    pub(crate) fn text(&mut self) -> Result<&'de str, Malformed> {
        let mut reader = Reader { rest: self.rest()? };
        let text = reader.text()?;
        self.at = self.bytes.len() - reader.rest.len();
        Ok(text)
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Malformed;

    /// What a value is stands in its type, not in its bytes.
    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Malformed> {
        Err(Malformed)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(Malformed),
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_i8(self.byte()?.cast_signed())
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_i16(self.signed()?)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_i32(self.signed()?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_i64(self.signed()?)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_u8(self.byte()?)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_u16(self.number()?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_u32(self.number()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_u64(self.number()?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        let bytes = self.take(4)?.first_chunk().ok_or(Malformed)?;
        visitor.visit_f32(f32::from_le_bytes(*bytes))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_f64(self.float()?)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        let length = match self.rest.first() {
            Some(0x00..=0x7f) => 1,
            Some(0xc0..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf7) => 4,
            Some(0x80..=0xbf | 0xf8..=0xff) | None => return Err(Malformed),
        };
        let text = str::from_utf8(self.take(length)?).map_err(|_| Malformed)?;
        visitor.visit_char(text.chars().next().ok_or(Malformed)?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_borrowed_bytes(self.bytes()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_borrowed_bytes(self.bytes()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            _ => Err(Malformed),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        let left = self.length()?;
        visitor.visit_seq(Items { reader: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        visitor.visit_seq(Items { reader: self, left: length })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        let left = self.length()?;
        visitor.visit_map(Items { reader: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        visitor.visit_enum(self)
    }

    /// Fields have no names here.
    fn deserialize_identifier<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Malformed> {
        Err(Malformed)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Malformed> {
        Err(Malformed)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'de> EnumAccess<'de> for &mut Reader<'de> {
    type Error = Malformed;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Malformed> {
        let variant: U32Deserializer<Malformed> = self.number::<u32>()?.into_deserializer();
        Ok((seed.deserialize(variant)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'de> {
    type Error = Malformed;

    fn unit_variant(self) -> Result<(), Malformed> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Malformed> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Malformed> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}

/// The items of a list, a map or a struct.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl Items<'_, '_> {
    /// Whether there is one more, which the caller then reads.
    fn next(&mut self) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// How many to make room for: each takes a byte at least, whatever their number claims to be.
    fn room(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Malformed;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Malformed> {
        if self.next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        self.room()
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Malformed;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Malformed> {
        if self.next() { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Malformed> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.room()
    }
}
