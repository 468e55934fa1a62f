//! The paths in a config.

use std::path::Path;

use super::{ConfigError, CpuTemplateSource, VmConfig};

impl VmConfig {
    /// Calls `visit` with the field (`drives[0].path_on_host`) and value of every path on the host.
    pub fn for_each_path(&mut self, mut visit: impl FnMut(&str, &mut String)) {
        visit("boot-source.kernel_image_path", &mut self.boot_source.kernel_image_path);
        let mut maybe = |field: &str, path: Option<&mut String>| {
            if let Some(path) = path {
                visit(field, path);
            }
        };
        maybe("boot-source.initrd_path", self.boot_source.initrd_path.as_mut());
        if let Some(CpuTemplateSource::Path(path)) = &mut self.cpu_config {
            maybe("cpu-config", Some(path));
        }
        for (index, drive) in self.drives.iter_mut().enumerate() {
            maybe(&format!("drives[{index}].path_on_host"), drive.path_on_host.as_mut());
            maybe(&format!("drives[{index}].socket"), drive.socket.as_mut());
        }
        for (index, pmem) in self.pmem.iter_mut().flatten().enumerate() {
            maybe(&format!("pmem[{index}].path_on_host"), Some(&mut pmem.path_on_host));
        }
        maybe("vsock.uds_path", self.vsock.as_mut().map(|vsock| &mut vsock.uds_path));
        maybe("logger.log_path", self.logger.as_mut().and_then(|logger| logger.log_path.as_mut()));
        maybe("metrics.metrics_path", self.metrics.as_mut().map(|metrics| &mut metrics.metrics_path));
        maybe(
            "serial.serial_out_path",
            self.serial.as_mut().and_then(|serial| serial.serial_out_path.as_mut()),
        );
    }

    /// Makes every relative path one below `base`, the folder of the config file. Empty paths stay empty.
    ///
    /// # Errors
    /// `base` is not UTF-8, and there is a relative path: JSON could not hold the result.
    pub fn resolve_paths(&mut self, base: &Path) -> Result<(), ConfigError> {
        let mut unfit = None;
        self.for_each_path(|field, path| {
            if path.is_empty() || Path::new(path.as_str()).is_absolute() {
                return;
            }
            match base.join(path.as_str()).into_os_string().into_string() {
                Ok(resolved) => *path = resolved,
                Err(_) => {
                    unfit.get_or_insert_with(|| field.to_owned());
                }
            }
        });
        match unfit {
            None => Ok(()),
            Some(field) => Err(ConfigError::folder_is_not_utf8(field, base)),
        }
    }
}
