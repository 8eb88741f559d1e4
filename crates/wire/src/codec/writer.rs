//! Values into bytes.

use alloc::vec::Vec;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::{EIGHT_BYTES, FOUR_BYTES, Malformed, SINGLE_BYTE_MAX, TWO_BYTES};

/// Appends to `bytes`.
pub(super) struct Writer<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
}

type Written = Result<(), Malformed>;

impl Writer<'_> {
    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    #[inline(never)]
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    #[inline(never)]
    fn unsigned(&mut self, number: u64) {
        let bytes = number.to_le_bytes();
        let [first, second, third, fourth, ..] = bytes;
        if number <= u64::from(SINGLE_BYTE_MAX) {
            self.byte(first);
        } else if number <= u64::from(u16::MAX) {
            self.raw(&[TWO_BYTES, first, second]);
        } else if number <= u64::from(u32::MAX) {
            self.raw(&[FOUR_BYTES, first, second, third, fourth]);
        } else {
            let [.., fifth, sixth, seventh, last] = bytes;
            let marked = [EIGHT_BYTES, first, second, third, fourth, fifth, sixth, seventh, last];
            self.raw(&marked);
        }
    }

    /// Small ones are short on both sides of 0.
    fn signed(&mut self, number: i64) {
        self.unsigned((number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned());
    }

    fn length(&mut self, length: usize) -> Written {
        self.unsigned(u64::try_from(length).map_err(|_| Malformed)?);
        Ok(())
    }
}

impl<'a, 'b> Serializer for &'a mut Writer<'b> {
    type Ok = ();
    type Error = Malformed;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fn serialize_bool(self, value: bool) -> Written {
        self.byte(u8::from(value));
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Written {
        self.byte(value.cast_unsigned());
        Ok(())
    }

    fn serialize_i16(self, value: i16) -> Written {
        self.signed(i64::from(value));
        Ok(())
    }

    fn serialize_i32(self, value: i32) -> Written {
        self.signed(i64::from(value));
        Ok(())
    }

    fn serialize_i64(self, value: i64) -> Written {
        self.signed(value);
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Written {
        self.byte(value);
        Ok(())
    }

    fn serialize_u16(self, value: u16) -> Written {
        self.unsigned(u64::from(value));
        Ok(())
    }

    fn serialize_u32(self, value: u32) -> Written {
        self.unsigned(u64::from(value));
        Ok(())
    }

    fn serialize_u64(self, value: u64) -> Written {
        self.unsigned(value);
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Written {
        self.raw(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Written {
        self.raw(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Written {
        self.raw(value.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Written {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Written {
        self.length(value.len())?;
        self.raw(value);
        Ok(())
    }

    fn serialize_none(self) -> Written {
        self.byte(0);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        self.byte(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Written {
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Written {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, variant: u32, _: &'static str) -> Written {
        self.serialize_u32(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Written {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        value: &T,
    ) -> Written {
        self.unsigned(u64::from(variant));
        value.serialize(self)
    }

    /// One of a length that is not known beforehand cannot be written.
    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Malformed> {
        self.length(length.ok_or(Malformed)?)?;
        Ok(self)
    }

    fn serialize_tuple(self, _length: usize) -> Result<Self, Malformed> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Malformed> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Malformed> {
        self.unsigned(u64::from(variant));
        Ok(self)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, Malformed> {
        self.serialize_seq(length)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Malformed> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        variant: u32,
        variant_name: &'static str,
        length: usize,
    ) -> Result<Self, Malformed> {
        self.serialize_tuple_variant(name, variant, variant_name, length)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl SerializeSeq for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeTuple for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeTupleStruct for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeTupleVariant for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeMap for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Written {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeStruct for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}

impl SerializeStructVariant for &mut Writer<'_> {
    type Ok = ();
    type Error = Malformed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}
